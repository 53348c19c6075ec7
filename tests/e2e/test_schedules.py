"""The whole proxy over schedules that nobody would think of, many connections at once.

Both ends see what the model of tests.support.schedules says they must see, and the connection's one final line says the
same. A connection is known by the number that its hello offers for an ALPN protocol, which the log repeats.
"""

import asyncio
import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from sniproxy.outcome import Reason
from tests.e2e.conftest import allowing
from tests.support.proxy import PATIENCE, ProxyProcess, running_proxy
from tests.support.schedules import KIB, MIB, Account, assert_lawful, new_accounts, play, some_schedule
from tests.support.soaking import soak_seconds, soak_seed, tell
from tests.wire.build import build_client_hello

NAME = "schedules.example.org"
REASONS = {reason.word: reason for reason in Reason}

SCHEDULES = 2000
AT_ONCE = 64  # more than a worker has pipes for


def hello_of(number: int) -> bytes:
    return build_client_hello(NAME, alpn=[f"{number:08}"])


SIZE = len(hello_of(0))
NUMBER = slice(hello_of(0).index(b"00000000"), hello_of(0).index(b"00000000") + 8)

Accounts = dict[int, tuple[Account, Account]]


async def rest(units: int) -> None:
    """A pause of a network, and not of an event loop: 32 ms at most."""
    await asyncio.sleep(units * 0.000_125)


class Run:
    """Connections through one proxy, each with the schedule that its number gives."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.accounts: Accounts = {}
        self._played: dict[int, asyncio.Future[None]] = {}  # the origin's part of it

    async def perform(self, number: int, address: tuple[str, int]) -> None:
        """Let one connection live."""
        dice = random.Random(f"{self.seed} {number}")
        schedule = some_schedule(dice, limit=dice.choice([200, 64 * KIB, 4 * MIB]), breaks=dice.random() < 0.5)
        client, origin = self.accounts[number] = new_accounts(schedule, hello_of(number), number)
        loop = asyncio.get_running_loop()
        played = self._played[number] = loop.create_future()
        sock = new_socket()
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, address)
                await send_hello(sock, client, dice)
                await play(sock, client, rest)
                await played
        except TimeoutError:
            raise AssertionError(f"seed {self.seed!r}, {number}: never over\n{told(client, origin)}") from None

    async def serve(self, sock: socket.socket) -> None:
        """The origin's part of whichever connection this is."""
        loop = asyncio.get_running_loop()
        hello = b""
        while len(hello) < SIZE:
            chunk = await loop.sock_recv(sock, SIZE - len(hello))
            assert chunk, f"an end after {len(hello)} bytes of the hello"
            hello += chunk
        number = int(hello[NUMBER])
        origin = self.accounts[number][1]
        origin.take(hello)
        await play(sock, origin, rest)
        self._played[number].set_result(None)


def new_socket() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    return sock


def told(client: Account, origin: Account) -> str:
    return f"client {client}\norigin {origin}"


async def send_hello(sock: socket.socket, client: Account, dice: random.Random) -> None:
    """In one piece or two, alone or with what comes after it."""
    piece = dice.choice([SIZE, SIZE, dice.randrange(1, SIZE), SIZE + dice.randrange(2000)])
    for each in (client.script[:piece], client.script[piece:SIZE]):
        if each:
            await asyncio.get_running_loop().sock_sendall(sock, each)
            client.said += len(each)
            await rest(dice.choice([0, 0, 1, 20]))


@contextlib.asynccontextmanager
async def serving(run: Run, server: socket.socket, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
    """Hand each connection of the server to the run."""

    async def accept() -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(server)
            sock.setblocking(False)
            tasks.create_task(run.serve(sock))

    accepting = tasks.create_task(accept())
    try:
        yield
    finally:
        accepting.cancel()


async def perform_all(run: Run, numbers: Iterable[int], address: tuple[str, int], server: socket.socket) -> None:
    """Some at a time."""
    left = iter(numbers)

    async def some() -> None:
        for number in left:
            await run.perform(number, address)

    async with asyncio.TaskGroup() as tasks, serving(run, server, tasks):
        async with asyncio.TaskGroup() as clients:
            for _ in range(AT_ONCE):
                clients.create_task(some())


def perform_and_check(home: Path, seed: str, numbers: range) -> Counter[Reason]:
    """These schedules through a proxy of their own; how often they ended for which reason."""
    run = Run(seed)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        server.setblocking(False)
        config = {"upstream": {"hosts": {NAME: [f"127.0.0.1:{server.getsockname()[1]}"]}}, "workers": 2}
        with running_proxy(home, config, allowing(NAME)) as proxy:
            asyncio.run(perform_all(run, numbers, proxy.address, server))
            return check(run, proxy)


def check(run: Run, proxy: ProxyProcess) -> Counter[Reason]:
    """Each connection was lawful, and log and metrics say the same of it."""
    lines = proxy.wait_for_finals(len(run.accounts))
    assert len(lines) == len(run.accounts)
    by_number = {int(line["alpn"]): line for line in lines}
    reasons: Counter[Reason] = Counter()
    received = sent = taken = 0
    for number, (client, origin) in run.accounts.items():
        line = by_number[number]
        reason = REASONS[line["reason"]]
        try:
            assert_lawful(client, origin, reason, line["receivedBytes"], line["sentBytes"])
        except AssertionError as error:
            what = f"seed {run.seed!r}, {number}: {error}"
            raise AssertionError(f"{what}\n{told(client, origin)}\n{line}") from error
        reasons[reason] += 1
        # Of what an origin that is gone did not take, the log tells, and the metric does not.
        received += origin.heard if origin.departure is None else 0
        taken += line["receivedBytes"]
        sent += line["sentBytes"]
    metrics = proxy.wait_until_idle()
    assert {
        reason: metrics[f'sniproxy_connections_closed_total{{reason="{reason.word}"}}'] for reason in reasons
    } == reasons
    assert metrics["sniproxy_connections_opened_total"] == len(run.accounts)
    assert metrics['sniproxy_bytes_total{direction="sent"}'] == sent
    assert received <= metrics['sniproxy_bytes_total{direction="received"}'] <= taken
    return reasons


def test_each_of_many_connections_is_lawful_and_its_line_counts_what_its_ends_counted(tmp_path: Path) -> None:
    """Small ones and large ones, with pauses, half-closes, resets, and readers that do not read."""
    reasons = perform_and_check(tmp_path, "schedules", range(SCHEDULES))
    assert reasons.keys() == {Reason.DONE, Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}
    assert reasons.total() == SCHEDULES


@pytest.mark.soak
def test_ever_new_connections_are_lawful(tmp_path: Path) -> None:
    """The same for a while, from a seed that is told."""
    seed, batch = soak_seed(), 0
    until = time.monotonic() + soak_seconds(60)
    while time.monotonic() < until:
        batch += 1
        home = tmp_path / str(batch)
        home.mkdir()
        assert perform_and_check(home, f"{seed} {batch}", range(SCHEDULES)).total() == SCHEDULES
    tell(f"{SCHEDULES * batch} schedules")
