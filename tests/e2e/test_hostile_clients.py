"""Clients that mean ill, one by one or in a crowd: slow, silent, half gone, gone, or talking nonsense without end.

Whatever they do costs them a final line with its reason, gives back all that it took, and costs nobody else anything:
`besieged` looks at all three. What floods and stalls is in test_hostile_floods.py.
"""

import contextlib
import errno
import random
import select
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dns.message
import pytest

from sniproxy.wire.proxy_protocol import Tlv
from tests.net.loopback import cut, fill
from tests.support.clients import TIMEOUT, alert_of, connected, hello_for, proxy_header
from tests.support.dns_server import Asked
from tests.support.origins import accept_from, read_exactly, read_to_end
from tests.support.proxy import wait_until
from tests.support.siege import CROWD, DOMAIN, HEADER, HELLO, HOLE, MIB, NAME, Site, Sockets, crowd, jam, site
from tests.wire.build import build_client_hello


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Its time-outs come soon."""
    home = tmp_path_factory.mktemp("impatient")
    timeouts = {"client_hello": "1s", "idle": "2s"}
    with site(home, {"timeout": "1s"}, timeouts=timeouts, upstream={"connect_timeout": "2s"}) as its:
        yield its


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Nothing times out while a test lasts."""
    timeouts = {"client_hello": "1m", "idle": "1m"}
    with site(tmp_path_factory.mktemp("patient"), {"timeout": "10s"}, timeouts=timeouts) as its:
        yield its


HALF = CROWD // 2

Ends = Callable[[Sockets, Sockets], object]  # what to do with the clients' ends, and the origin's


def end(senders: Sockets, receivers: Sockets) -> None:
    """They say that they have said all."""
    for sender, receiver in zip(senders, receivers, strict=True):
        sender.shutdown(socket.SHUT_WR)
        assert receiver.recv(1) == b""


def jam_and_leave(clients: Sockets, _origins: Sockets) -> None:
    """Resets, behind what the origin does not take. It would get that first, if it read on."""
    jam(clients)
    for sock in clients:
        cut(sock)


STANDSTILLS: dict[str, Ends] = {
    "nobody says anything": lambda _clients, _origins: None,
    "the client has said all, and the origin says nothing": end,
    "the client does not read": lambda _clients, origins: jam(origins),
    "the origin does not read": lambda clients, _origins: jam(clients),
    "the origin does not read, and the client is gone": jam_and_leave,
}


DRIPPED = {
    "hello": (b"", build_client_hello(NAME, padding=4000)),
    "PROXY header": (b"", proxy_header(extra=[Tlv(0xE0, bytes(4000))])),
    "hello behind a PROXY header": (HEADER, build_client_hello(NAME, padding=4000)),
}


class TestSlow:
    """Who takes all the time there is gets it once, and costs a timer meanwhile."""

    def test_a_byte_at_a_time_gains_no_time(self, impatient: Site) -> None:
        """timeouts.client_hello is for PROXY header and hello together, whatever drips in meanwhile."""
        with impatient.under_siege(hello_timeout=HALF * len(DRIPPED)) as siege, contextlib.ExitStack() as stack:
            rest: dict[socket.socket, Iterator[int]] = {}
            for said, dripped in DRIPPED.values():
                for sock in stack.enter_context(crowd(impatient.listener(said or dripped), said, HALF)):
                    rest[sock] = iter(dripped)
            siege.serves_others()
            while rest:
                refused, _, _ = select.select(rest, [], [], 0.02)
                for sock in refused:
                    assert alert_of(sock) == "internal_error"
                    del rest[sock]
                for sock, to_come in rest.items():
                    with contextlib.suppress(OSError):  # refused since we looked
                        sock.sendall(bytes([next(to_come)]))

    def test_who_never_sends_is_sent_away(self, impatient: Site) -> None:
        """With and without a PROXY header to wait for."""
        with impatient.under_siege(hello_timeout=2 * CROWD) as siege:
            with crowd(impatient.plain) as some, crowd(impatient.behind_envoy) as more:
                siege.serves_others()
                assert {alert_of(sock) for sock in some + more} == {"internal_error"}

    def test_what_stands_still_is_idle(self, impatient: Site) -> None:
        """timeouts.idle ends it, whatever it stands still for, and whoever it is that does not go on."""
        with impatient.under_siege(idle_timeout=HALF * len(STANDSTILLS)) as siege, contextlib.ExitStack() as stack:
            for stand_still in STANDSTILLS.values():
                stand_still(*stack.enter_context(impatient.opened(HALF)))
            siege.serves_others()
            siege.active(0)


BEFORE_A_DECISION = {
    "before the hello": b"",
    "mid-PROXY header": HEADER[:20],
    "between PROXY header and hello": HEADER,
    "mid-hello": HELLO[:100],
    "mid-hello behind a PROXY header": HEADER + HELLO[:100],
}


@pytest.mark.parametrize("stage", BEFORE_A_DECISION)
class TestGoneBeforeADecision:
    """An end or a reset there is the client's own doing, and no refusal."""

    def test_half_open(self, patient: Site, stage: str) -> None:
        """The client shuts its write side down, and goes on listening: it is told at once, by an alert and an end."""
        said = BEFORE_A_DECISION[stage]
        with patient.under_siege(client_closed=CROWD) as siege, crowd(patient.listener(said), said) as socks:
            for sock in socks:
                sock.shutdown(socket.SHUT_WR)
            siege.serves_others()
            assert {alert_of(sock) for sock in socks} == {"internal_error"}

    def test_reset(self, patient: Site, stage: str) -> None:
        said = BEFORE_A_DECISION[stage]
        with patient.under_siege(client_closed=CROWD) as siege, crowd(patient.listener(said), said) as socks:
            siege.active(CROWD)  # the kernel keeps a connection without a byte to itself, for about a second
            siege.serves_others()
            for sock in socks:
                cut(sock)


def queries(name_server: socket.socket, names: set[str]) -> list[tuple[Asked, Any]]:
    """A question for each of these names, with who asks."""
    asked: dict[str, tuple[Asked, Any]] = {}
    while names - asked.keys():
        wire, resolver = name_server.recvfrom(4096)
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text(omit_final_dot=True)
        asked[name] = Asked(name, "A", "udp", query), resolver
    return [asked[name] for name in names]


class TestResetBeforeItIsOpen:
    """Nobody reads what a client sends while its name is looked up and dialled: the end is found out later."""

    @contextlib.contextmanager
    def waiting_for_dns(self, its: Site, call: str) -> Iterator[tuple[list[socket.socket], list[tuple[Asked, Any]]]]:
        names = {f"{call}-{number}.{DOMAIN}" for number in range(CROWD)}
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connected(its.plain)) for _ in names]
            for sock, name in zip(socks, names, strict=True):
                sock.sendall(hello_for(name))
            yield socks, queries(its.name_server, names)

    def test_while_dns_is_pending(self, patient: Site) -> None:
        """The answer comes, the origin is dialled, and hears that the client is gone."""
        with patient.under_siege(client_reset=CROWD) as siege:
            with self.waiting_for_dns(patient, "answered") as (socks, asked):
                siege.serves_others()
                for sock in socks:
                    cut(sock)
                for question, resolver in asked:
                    reply = question.reply(f"{question.name}. 60 A 127.0.0.1")
                    patient.name_server.sendto(reply, resolver)
                for _ in asked:
                    with accept_from(patient.origin) as far, pytest.raises(ConnectionResetError):
                        read_to_end(far)

    def test_while_dns_never_answers(self, impatient: Site) -> None:
        with impatient.under_siege(dns_timeout=CROWD) as siege:
            with self.waiting_for_dns(impatient, "silent") as (socks, _):
                siege.serves_others()
                for sock in socks:
                    cut(sock)

    def test_while_dialling(self, impatient: Site) -> None:
        """The dial runs out of its own time."""
        with impatient.under_siege(connect_timeout=HALF) as siege:
            with crowd(impatient.plain, hello_for(HOLE), HALF) as socks:
                all_of_them = siege.before.sockets + 2 * HALF
                wait_until(lambda: siege.vitals().sockets == all_of_them, "a second socket of each")
                siege.serves_others()
                for sock in socks:
                    cut(sock)


def error_of(sock: socket.socket) -> int:
    """What a connection comes to behind all that is still to be read.

    The kernel gives a socket that has heard an end EPIPE for a reset, and keeps it from who reads.
    """
    try:
        read_to_end(sock)
    except OSError as error:
        return error.errno or 0
    poller = select.poll()
    poller.register(sock, 0)
    assert poller.poll(TIMEOUT * 1000), "an end, and no reset"
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


STAGES: dict[str, Ends] = {
    "just after open": lambda _clients, _origins: None,
    "mid-stream": lambda clients, origins: jam(clients + origins),
    "after the client's end": end,
    "after the origin's end": lambda clients, origins: end(origins, clients),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reason", ["client_reset", "upstream_reset"])
def test_a_reset_of_what_is_open_is_a_reset_for_the_other(patient: Site, stage: str, reason: str) -> None:
    """And no end, whatever either side has sent or said before."""
    with patient.under_siege(**{reason: HALF}) as siege, patient.opened(HALF) as (clients, origins):
        STAGES[stage](clients, origins)
        siege.serves_others()
        leaving, staying = (clients, origins) if reason == "client_reset" else (origins, clients)
        for sock in leaving:
            cut(sock)
        assert {error_of(sock) for sock in staying} <= {errno.ECONNRESET, errno.EPIPE}


def test_an_end_of_the_client_alone_is_none_of_the_connection(patient: Site) -> None:
    """Half open after the hello: the client has said all that it will say, and still gets all of the answer."""
    with patient.under_siege(done=HALF) as siege, patient.opened(HALF) as (clients, origins):
        end(clients, origins)
        siege.serves_others()
        for near, far in zip(clients, origins, strict=True):
            with ThreadPoolExecutor(1) as pool, far:
                sending = pool.submit(far.sendall, GARBAGE)
                assert read_exactly(near, len(GARBAGE)) == GARBAGE
                sending.result()
            assert read_to_end(near) == b""


GARBAGE = random.Random(20).randbytes(MIB)
LONG_HELLO = b"\x16\x03\x01\x40\x00\x01\x00\xf0\x00"  # a record of 16 KiB, in it the first part of a hello of 60 KiB
LONG_HEADER = HEADER[:14] + b"\x3f\xf0"  # a PROXY header of 16 KiB

NONSENSE = {
    "from the first byte": (b"\0", "not_tls"),
    "behind the header of a hello": (LONG_HELLO, "malformed_hello"),
    "behind the header of a hello behind a PROXY header": (HEADER + LONG_HELLO, "malformed_hello"),
    "behind the beginning of a PROXY header": (LONG_HEADER, "bad_proxy_header"),
    "behind a refused hello": (hello_for("example.com"), "default"),
}


@pytest.mark.parametrize("where", NONSENSE)
def test_16_mb_of_garbage_is_not_kept(patient: Site, where: str) -> None:
    """A client that does not care for the refusal is cut off after 64 KiB more."""
    said, reason = NONSENSE[where]
    with patient.under_siege(**{reason: CROWD}) as siege, crowd(patient.listener(said), said) as socks:
        for sock in socks:
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                for _ in range(16):
                    sock.sendall(GARBAGE)
        siege.serves_others()


def test_what_comes_behind_an_allowed_hello_waits_in_the_kernel_until_it_is_open(patient: Site) -> None:
    """The proxy takes one read of it with the hello, and the rest only when there is somebody to give it to."""
    name = f"early.{DOMAIN}"
    with patient.under_siege(done=1) as siege, connected(patient.plain) as near:
        near.sendall(hello_for(name))
        ((asked, resolver),) = queries(patient.name_server, {name})
        near.setblocking(False)
        waits = fill(near)
        assert waits > MIB
        siege.has_kept_within(MIB)
        siege.serves_others()
        patient.name_server.sendto(asked.reply(f"{name}. 60 A 127.0.0.1"), resolver)
        with accept_from(patient.origin) as far:
            near.shutdown(socket.SHUT_WR)
            received = bytearray()
            while data := far.recv(MIB):
                received += data
        assert received == hello_for(name) + bytes(waits)
