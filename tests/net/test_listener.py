"""Listening sockets, whom a listener trusts, and the loop that accepts."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from sniproxy.config.model import Listener
from sniproxy.config.units import TcpAddress, UnixAddress, parse_trusted_peer
from sniproxy.net import listener
from sniproxy.net.calls import Socket, accept
from sniproxy.net.listener import Acceptor, CannotOpenError, Peer, Trust, address_of, open_listener
from sniproxy.net.readiness import Readiness
from sniproxy.net.timers import TimerWheel
from tests.net.clock import HandClock
from tests.net.loopback import (
    PATIENCE,
    its_rounds,
    no_collection,
    no_descriptor_left,
    open_descriptors,
    turns,
    until,
)

ANY_PORT = TcpAddress("127.0.0.1", 0)


@contextlib.contextmanager
def listening(address: TcpAddress | UnixAddress, workers: int = 1) -> Iterator[list[socket.socket]]:
    sockets = open_listener(address, workers)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def said(sock: Socket) -> bytes:
    """What a client has said; nothing if it is gone."""
    with contextlib.suppress(OSError):
        return sock.recv(10)
    return b""


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


class TestOpeningTcp:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
    def test_each_worker_has_a_socket_of_one_port(self, host: str) -> None:
        """Port 0 is chosen once. Every socket listens, blocks nobody, and is not inherited by other programs."""
        with listening(TcpAddress(host, 0), workers=4) as sockets:
            assert (4, 1) == (len({sock.fileno() for sock in sockets}), len({port_of(sock) for sock in sockets}))
            assert {(host, True, False, False)} == {
                (
                    sock.getsockname()[0],
                    bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)),
                    sock.getblocking(),
                    os.get_inheritable(sock.fileno()),
                )
                for sock in sockets
            }

    def test_an_accepted_socket_sends_without_delay(self) -> None:
        """TCP_NODELAY is inherited from the listener, and costs no system call a connection."""
        with listening(ANY_PORT) as (listener,):
            listener.settimeout(PATIENCE)
            with socket.create_connection(listener.getsockname()) as client:
                client.send(b"x")
                with listener.accept()[0] as accepted:
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_ipv4_does_not_come_in_by_ipv6(self) -> None:
        """Or its peers would be ::ffff:a.b.c.d, which no trusted network of IPv4 holds."""
        with listening(TcpAddress("::", 0)) as (listener,), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(listener)))

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_an_address_in_use_is_an_error_that_names_it(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as other:
            address = TcpAddress(host, port_of(other))
            with pytest.raises(CannotOpenError) as caught:
                open_listener(address, 2)
            assert str(caught.value) == f"cannot listen on {address}: address already in use"

    def test_a_second_proxy_cannot_share_the_port(self) -> None:
        """Although SO_REUSEPORT would let it, and the kernel would send it half of the connections."""
        before = open_descriptors()
        with listening(ANY_PORT, workers=2) as sockets:
            with pytest.raises(CannotOpenError):
                open_listener(TcpAddress("127.0.0.1", port_of(sockets[0])), 2)
        assert before == open_descriptors()

    def test_a_port_is_free_again_right_after(self) -> None:
        """Connections of the proxy before that linger in TIME_WAIT do not keep its successor from starting."""
        with listening(ANY_PORT) as (listener,):
            listener.settimeout(PATIENCE)
            address = TcpAddress("127.0.0.1", port_of(listener))
            with socket.create_connection(listener.getsockname()) as client:
                client.send(b"x")
                with listener.accept()[0] as accepted:
                    accepted.recv(1)
                assert client.recv(1) == b""
        with listening(address) as (successor,):
            assert port_of(successor) == address.port

    def test_an_address_that_is_not_ours_is_an_error_that_names_it(self) -> None:
        with pytest.raises(CannotOpenError) as caught:
            open_listener(TcpAddress("192.0.2.1", 8443), 1)
        assert str(caught.value) == "cannot listen on 192.0.2.1:8443: cannot assign requested address"

    def test_what_cannot_be_opened_whole_leaves_nothing(self) -> None:
        """Out of descriptors after the second of four."""
        before = open_descriptors()
        with no_descriptor_left(but=2), pytest.raises(CannotOpenError):
            open_listener(ANY_PORT, 4)
        assert before == open_descriptors()


class TestOpeningUnix:
    def test_all_workers_accept_from_one_socket(self, tmp_path: Path) -> None:
        with listening(UnixAddress(f"{tmp_path}/sock"), workers=4) as sockets:
            assert len({sock.fileno() for sock in sockets}) == 1
            assert (False, False) == (sockets[0].getblocking(), os.get_inheritable(sockets[0].fileno()))

    def test_owner_and_group_may_connect_and_nobody_else(self, tmp_path: Path) -> None:
        """From the moment it is there; and the process's own umask is as before."""
        path = tmp_path / "sock"
        mask = os.umask(0o022)
        try:
            with listening(UnixAddress(str(path))):
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert os.umask(0o022) == 0o022
        finally:
            os.umask(mask)

    def test_the_socket_of_a_process_that_is_gone_is_replaced(self, tmp_path: Path) -> None:
        address = UnixAddress(f"{tmp_path}/sock")
        with listening(address):
            pass
        assert Path(address.path).is_socket()
        with listening(address), socket.socket(socket.AF_UNIX) as client:
            client.connect(address.path)

    def test_the_socket_of_a_living_process_is_not_touched(self, tmp_path: Path) -> None:
        address = UnixAddress(f"{tmp_path}/sock")
        with listening(address):
            assert refusal(address) == f"cannot listen on {address}: another process listens there"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address.path)

    def test_nor_that_of_one_that_is_too_busy_to_accept(self, tmp_path: Path) -> None:
        """Its queue is full, so connecting would wait; we do not."""
        address = UnixAddress(f"{tmp_path}/sock")
        with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
            busy.bind(address.path)
            busy.listen(0)
            with pytest.raises(BlockingIOError):
                while True:
                    client = stack.enter_context(socket.socket(socket.AF_UNIX))
                    client.setblocking(False)
                    client.connect(address.path)
            assert refusal(address) == f"cannot listen on {address}: another process listens there"
            assert Path(address.path).is_socket()

    def test_a_file_that_is_no_socket_is_not_touched(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("data")
        address = UnixAddress(str(path))
        assert refusal(address) == f"cannot listen on {address}: a file that is no socket has that path"
        assert path.read_text() == "data"

    def test_a_folder_that_is_not_there_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        address = UnixAddress(f"{tmp_path}/missing/sock")
        before = open_descriptors()
        assert refusal(address) == f"cannot listen on {address}: no such file or directory"
        assert before == open_descriptors()


def refusal(address: UnixAddress) -> str:
    with pytest.raises(CannotOpenError) as caught:
        open_listener(address, 2)
    return str(caught.value)


def test_how_a_person_names_a_listener(tmp_path: Path) -> None:
    """As the config would."""
    for address in (ANY_PORT, TcpAddress("::1", 0), UnixAddress(f"{tmp_path}/sock")):
        with listening(address) as (sock,):
            chosen = TcpAddress(address.host, port_of(sock)) if isinstance(address, TcpAddress) else address
            assert str(chosen) == str(address_of(sock))


def trust(*peers: str) -> Trust:
    on_unix = any(peer.startswith("uid:") for peer in peers)
    address = UnixAddress("/run/sniproxy.sock") if on_unix else ANY_PORT
    trusted = tuple(map(parse_trusted_peer, peers))
    return Trust(Listener(address=address, proxy_protocol="required" if peers else "off", trusted_peers=trusted))


TRUST: dict[str, tuple[Sequence[str], Peer, bool]] = {
    "an address in a trusted network": (["10.0.0.0/8"], Peer("10.1.2.3"), True),
    "an address outside of it": (["10.0.0.0/8"], Peer("11.0.0.1"), False),
    "any of several networks": (["10.0.0.0/8", "192.0.2.0/24"], Peer("192.0.2.9"), True),
    "one address": (["127.0.0.1/32"], Peer("127.0.0.1"), True),
    "the address beside it": (["127.0.0.1/32"], Peer("127.0.0.2"), False),
    "an IPv6 address": (["fd00::/8"], Peer("fd12::1"), True),
    "an IPv6 address of another network": (["fd00::/8"], Peer("2001:db8::1"), False),
    "an IPv6 address with a zone": (["fe80::/10"], Peer("fe80::1%eth0"), True),
    "everything of IPv4 is nothing of IPv6": (["0.0.0.0/0"], Peer("::1"), False),
    "everything of IPv6 is nothing of IPv4": (["::/0"], Peer("127.0.0.1"), False),
    "a trusted user": (["uid:1337"], Peer("", 1337), True),
    "another user": (["uid:1337"], Peer("", 1000), False),
    "root is nobody special": (["uid:1337"], Peer("", 0), False),
    "a user that is trusted by number zero": (["uid:0"], Peer("", 0), True),
    "a user where networks are trusted": (["0.0.0.0/0", "::/0"], Peer("", 0), False),
    "nobody is trusted": ([], Peer("127.0.0.1"), False),
}


@pytest.mark.parametrize("case", TRUST)
def test_who_is_trusted(case: str) -> None:
    """Asked twice, for the answer about an address is remembered."""
    trusted, peer, expected = TRUST[case]
    asked = trust(*trusted)
    assert [expected] * 2 == [asked.has(peer), asked.has(peer)]


def test_trust_that_is_no_more_needed_keeps_nothing() -> None:
    """Each generation of the config makes its own, and each remembers thousands of addresses."""
    with no_collection():
        network = parse_trusted_peer("10.0.0.0/8")
        is_kept = weakref.ref(network)
        listener = Listener(address=ANY_PORT, proxy_protocol="required", trusted_peers=(network,))
        trust = Trust(listener)
        assert trust.has(Peer("10.1.2.3"))
        del trust, listener, network

        assert is_kept() is None


SOURCES = {
    "IPv4": (Peer("192.0.2.1"), "192.0.2.1"),
    "IPv6": (Peer("2001:db8::1"), "2001:db8::1"),
    "a user on a Unix socket": (Peer("", 1337), "uid:1337"),
    "root on a Unix socket": (Peer("", 0), "uid:0"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_what_a_peer_is_counted_by(case: str) -> None:
    peer, expected = SOURCES[case]
    assert expected == peer.source


@dataclass
class Reception:
    """A listening socket, its acceptor on a clock moved by hand, and what came in."""

    sock: socket.socket
    clock: HandClock
    acceptor: Acceptor
    accepted: list[tuple[Socket, Peer]] = field(default_factory=list)
    shed: list[Peer] = field(default_factory=list)
    clients: list[socket.socket] = field(default_factory=list)

    def call(self, count: int = 1) -> None:
        """`count` clients connect and say something."""
        for _ in range(count):
            client = socket.socket(self.sock.family)
            client.settimeout(PATIENCE)
            client.connect(self.sock.getsockname())
            self.clients.append(client)
            client.send(b"x")

    async def until_accepted(self, count: int) -> None:
        await until(lambda: len(self.accepted) >= count, f"{count} connections")
        assert len(self.accepted) == count


@contextlib.contextmanager
def reception(address: TcpAddress | UnixAddress = ANY_PORT) -> Iterator[Reception]:
    clock = HandClock(asyncio.get_running_loop())
    (sock,) = open_listener(address, 1)
    its: Reception

    def on_connection(accepted: Socket, peer: Peer) -> None:
        its.accepted.append((accepted, peer))

    def on_shed(peer: Peer) -> None:
        its.shed.append(peer)

    rounds = its_rounds()
    readiness = Readiness(rounds, TimerWheel(clock, rounds.on_fault))
    its = Reception(sock, clock, Acceptor(sock, readiness, on_connection, on_shed))
    its.acceptor.start()
    try:
        yield its
    finally:
        if sock.fileno() != -1:
            its.acceptor.close()
        for client in [*its.clients, *(accepted for accepted, _ in its.accepted)]:
            client.close()


@pytest.fixture
async def desk() -> AsyncIterator[Reception]:
    with reception() as its:
        yield its


class TestAccepting:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_a_connection_comes_with_its_peer(self, host: str) -> None:
        """Its address, no user; the socket blocks nobody and is not inherited."""
        with reception(TcpAddress(host, 0)) as desk:
            desk.call()
            await desk.until_accepted(1)
            accepted, peer = desk.accepted[0]
            assert Peer(host) == peer
            assert (False, False) == (os.get_blocking(accepted.fileno()), os.get_inheritable(accepted.fileno()))

    async def test_on_a_unix_socket_the_peer_is_a_user(self, tmp_path: Path) -> None:
        with reception(UnixAddress(f"{tmp_path}/sock")) as desk:
            desk.call()
            await desk.until_accepted(1)
            accepted, peer = desk.accepted[0]
            assert (Peer("", os.getuid()), False) == (peer, os.get_blocking(accepted.fileno()))

    async def test_a_burst_is_accepted_whole(self, desk: Reception) -> None:
        """Several hundred at once, in few turns of the loop, and then one more."""
        desk.call(300)
        await desk.until_accepted(300)
        desk.call()
        await desk.until_accepted(301)

    async def test_a_burst_grows_and_is_bounded(self, desk: Reception) -> None:
        """From one to 64 in a turn, each an eighth longer at most: others on the loop have theirs in between."""
        desk.call(1000)
        seen = [0]
        while seen[-1] < 1000:
            await until(lambda: len(desk.accepted) > seen[-1], "the next burst")
            seen.append(len(desk.accepted))
        *bursts, _last = (later - sooner for sooner, later in pairwise(seen))
        assert (1, 64) == (bursts[0], bursts[-1])
        assert all(0 <= longer - burst <= burst / 8 + 1 for burst, longer in pairwise(bursts))

    async def test_who_comes_alone_is_seldom_looked_for_in_vain(
        self, desk: Reception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of 30 that come one after the other, a few are followed by a look whether there is another."""
        looks: list[int] = []

        def counting(sock: socket.socket, family: int) -> tuple[Socket, str] | None:
            looks.append(family)
            return accept(sock, family)

        monkeypatch.setattr(listener, "_accept", counting)
        for number in range(1, 31):
            desk.call()
            await desk.until_accepted(number)
        assert 30 <= len(looks) <= 36

    async def test_one_that_is_gone_already_is_passed_over(self, desk: Reception) -> None:
        """Its reset is found by whoever reads, and the next one is accepted all the same."""
        desk.call()
        desk.clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        desk.clients[0].close()
        desk.call()
        await until(lambda: any(said(sock) == b"x" for sock, _ in desk.accepted), "the second one")

    async def test_after_closing_nothing_is_accepted(self, desk: Reception) -> None:
        before = len(desk.accepted)
        name = desk.sock.getsockname()
        desk.acceptor.close()
        with socket.socket() as client:
            assert client.connect_ex(name) == errno.ECONNREFUSED
        await turns()
        assert before == len(desk.accepted)


class TestWithoutDescriptors:
    """A connection that cannot be kept is closed and counted; nothing spins, and nothing waits for ever."""

    async def test_what_has_no_room_is_shed(self, desk: Reception) -> None:
        """Each client sees a reset at once, for nobody has read what it said, and is counted with its address."""
        desk.call(5)
        with no_descriptor_left():
            await until(lambda: len(desk.shed) == 5, "five that were shed")
        for client in desk.clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert ([], {"127.0.0.1"}) == (desk.accepted, {peer.ip for peer in desk.shed})
        assert desk.clock.scheduled == 0

    async def test_it_is_over_when_there_is_room_again(self, desk: Reception) -> None:
        desk.call(5)
        with no_descriptor_left(but=2):
            await until(lambda: len(desk.accepted) + len(desk.shed) == 5, "five that came")
        assert (2, 3) == (len(desk.accepted), len(desk.shed))
        desk.call()
        await desk.until_accepted(3)

    async def test_a_shed_burst_ends_with_the_queue(self, desk: Reception, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel says EMFILE before it looks whether anybody waits: an empty queue must not be shed from."""
        desk.call(20)
        await desk.until_accepted(20)  # the burst has grown
        opened: list[str] = []
        real_open = os.open

        def counting(path: str, flags: int, *more: int) -> int:
            opened.append(path)
            return real_open(path, flags, *more)

        desk.call(1)
        with no_descriptor_left():
            monkeypatch.setattr(os, "open", counting)
            await until(lambda: len(desk.shed) == 1, "one that was shed")
            await turns()
            monkeypatch.undo()
        assert len(opened) <= 2

    async def test_draining_ends(self, desk: Reception) -> None:
        """What waits is shed, and the listener is closed; an empty queue is found out, with EMFILE in between."""
        desk.call(3)
        with no_descriptor_left():
            desk.acceptor.drain()
        assert (3, -1) == (len(desk.shed), desk.sock.fileno())

    @pytest.mark.parametrize("fault", [errno.ENOMEM, errno.ENOBUFS, errno.ENFILE])
    async def test_a_machine_without_room_is_waited_for(
        self, desk: Reception, fault: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A spare descriptor does not help, so the listener pauses instead of asking again and again."""
        asked = failing_accept(desk, fault, monkeypatch)
        desk.call()
        await until(lambda: desk.clock.scheduled == 1, "a pause")
        await turns(50)
        assert (2, 0) == (len(asked), len(desk.shed))
        desk.clock.advance(1.0)
        await until(lambda: len(asked) == 4, "another try")
        await turns(50)
        assert len(asked) == 4
        monkeypatch.undo()
        desk.clock.advance(1.0)
        await desk.until_accepted(1)
        assert desk.clock.scheduled == 0

    async def test_when_even_the_spare_is_gone_the_listener_pauses(
        self, desk: Reception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And takes up its work, with a spare, when there is room again."""
        desk.call()
        with no_descriptor_left(), monkeypatch.context() as patch:
            patch.setattr(os, "open", no_room)
            await until(lambda: desk.clock.scheduled == 1, "a pause")
        assert (1, 0) == (len(desk.shed), len(desk.accepted))
        desk.call()
        await turns(50)
        assert desk.accepted == []
        desk.clock.advance(1.0)
        await desk.until_accepted(1)
        desk.call(2)
        with no_descriptor_left():
            await until(lambda: len(desk.shed) == 3, "two more that were shed")

    async def test_closing_during_a_pause_is_final(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether it is closed or drained, no timer brings the listener back."""
        before = open_descriptors()
        for finish in (Acceptor.drain, Acceptor.close):
            with reception() as other:
                with monkeypatch.context() as patch:
                    failing_accept(other, errno.ENOMEM, patch)
                    other.call()
                    await until(lambda: other.clock.scheduled == 1, "a pause")
                    finish(other.acceptor)
                other.clock.advance(5.0)
        assert before == open_descriptors()


def no_room(*_: object) -> int:
    raise OSError(errno.ENFILE, "no room")


def failing_accept(desk: Reception, fault: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every accept of any socket fail; a list that grows with each."""
    asked: list[int] = []

    def fail(sock: socket.socket, _family: int) -> Iterable[object]:
        asked.append(sock.fileno())
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("sniproxy.net.listener._accept", fail)
    return asked


class TestDraining:
    async def test_what_waits_is_accepted_first(self, desk: Reception) -> None:
        """Then the port is closed, and no descriptor is left."""
        desk.call(10)
        name = desk.sock.getsockname()
        desk.acceptor.drain()
        assert (10, -1) == (len(desk.accepted), desk.sock.fileno())
        with socket.socket() as client:
            assert client.connect_ex(name) == errno.ECONNREFUSED

    async def test_on_a_unix_socket_too(self, tmp_path: Path) -> None:
        with reception(UnixAddress(f"{tmp_path}/sock")) as desk:
            desk.call(10)
            desk.acceptor.drain()
            assert (10, -1) == (len(desk.accepted), desk.sock.fileno())

    async def test_nothing_is_left(self) -> None:
        before = open_descriptors()
        with reception() as desk:
            desk.call()
            await desk.until_accepted(1)
            desk.acceptor.drain()
        assert before == open_descriptors()
