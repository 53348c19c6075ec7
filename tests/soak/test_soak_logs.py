"""The real proxy for ten minutes with sick logs: a pipe that is read at a few kilobytes a second, and a full disk.

`make soak-logs` runs this, as root, for it mounts a small tmpfs; SOAK_SECONDS makes it shorter or longer. Beside the
sick logs there is a healthy one, which says what the others should have: what is missing there must have been counted.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.soak.gauges import SLACK_KIB, Gauges
from tests.soak.traffic import DOMAIN, KINDS, Traffic, World, world
from tests.support.proxy import ProxyProcess, running_proxy, wait_until
from tests.support.soaking import soak_seconds, soak_seed, tell

pytestmark = pytest.mark.soak

SECONDS = soak_seconds(600)
WORKERS = 2

# How the time is divided: with healthy logs alone, then with a full disk, then with room on it.
HEALTHY, FULL = 0.2 * SECONDS, 0.7 * SECONDS
ROOM = min(20.0, 0.1 * SECONDS)

READ_AT_ONCE, READ_PAUSE = 512, 0.1  # five kilobytes a second
SMALL, LARGE = "128k", "1g"

DROPPING, WRITTEN_AGAIN = "access log lines are being dropped", "access log lines are written again"

# As many as the machine has time for.
BUSY = {kind: KINDS[kind]._replace(rest=rest) for kind, rest in {"short": 0.0, "refused": 0.05, "stream": 0.5}.items()}


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A tmpfs that is full after a hundred lines."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "sniproxy-soak", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def make_room(path: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={LARGE}", path], check=True)


def config(here: World, *logs: Path) -> dict[str, Any]:
    return {
        "upstream": {"hosts": here.hosts},
        "access_log": [{"path": str(path)} for path in logs],
        "workers": WORKERS,
    }


POLICY = {"rules": [{"name": "all", "action": "allow", "sni": [f"*.{DOMAIN}"]}]}


class SlowReader:
    """Reads a named pipe, far too slowly; all that it has read is in a file."""

    def __init__(self, pipe: Path, kept: Path) -> None:
        self.is_slow = True
        self._descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._kept = kept
        self.is_over = False

    async def run(self) -> None:
        with self._kept.open("wb") as kept:
            while not self.is_over:
                with contextlib.suppress(BlockingIOError):
                    kept.write(os.read(self._descriptor, READ_AT_ONCE if self.is_slow else 1 << 20))
                await asyncio.sleep(READ_PAUSE if self.is_slow else 0.001)
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(self._descriptor, 1 << 20):
                    kept.write(chunk)
        os.close(self._descriptor)


@dataclass
class Stretch:
    """What the clients had of some time."""

    seconds: float
    served: Counter[str]

    def __str__(self) -> str:
        each = ", ".join(f"{count / self.seconds:.1f} {kind}" for kind, count in sorted(self.served.items()))
        return f"a second: {each}"


@contextlib.asynccontextmanager
async def busy(proxy: ProxyProcess, seed: str) -> AsyncIterator[Traffic]:
    """Clients of the proxy, until the context is left. Every one of them must have been served."""
    traffic = Traffic(seed, [proxy.address], BUSY)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(traffic.run())
        try:
            yield traffic
        finally:
            traffic.is_over = True
    assert traffic.mishaps == []
    assert traffic.served.total() == traffic.started


async def stretch(traffic: Traffic, seconds: float) -> Stretch:
    began, before = time.monotonic(), traffic.served.copy()
    await asyncio.sleep(seconds)
    return Stretch(time.monotonic() - began, traffic.served - before)


async def until(happened: Any, what: str) -> None:
    await asyncio.to_thread(wait_until, happened, what)


def said(proxy: ProxyProcess, event: str, path: Path) -> list[dict[str, Any]]:
    return [line for line in proxy.said if line["event"] == event and line["path"] == str(path)]


@dataclass
class Written:
    """The lines of one log: how many are whole, and pieces of lines whose other piece the disk did not take."""

    whole: int = 0
    pieces: int = 0

    @classmethod
    def of(cls, path: Path) -> "Written":
        written = cls()
        with path.open("rb") as lines:
            for line in lines:
                try:
                    json.loads(line)
                    written.whole += 1
                except ValueError:
                    written.pieces += 1
        return written


async def with_healthy_logs(home: Path, here: World, seed: str) -> Stretch:
    """The throughput, with as many logs as later."""
    home.mkdir()
    logs = [home / f"{number}.log" for number in range(3)]
    with running_proxy(home, config(here, *logs), POLICY) as proxy:
        async with busy(proxy, seed) as traffic:
            throughput = await stretch(traffic, HEALTHY)
    for log in logs:
        log.unlink()  # gigabytes, if it takes long
    return throughput


async def with_sick_logs(home: Path, here: World, seed: str, healthy_throughput: Stretch) -> None:
    home.mkdir()
    healthy, pipe, full = home / "access.log", home / "pipe", home / "disk" / "full.log"
    os.mkfifo(pipe)
    gauges = Gauges()
    with small_disk(full.parent):
        with running_proxy(home, config(here, healthy, pipe, full), POLICY) as proxy:
            pids = dict(zip(("first worker", "second worker", "admin process"), proxy.children(), strict=True))
            reader = SlowReader(pipe, home / "read")

            async def watch() -> None:
                while not reader.is_over:
                    await asyncio.to_thread(gauges.take, pids, "")
                    await asyncio.sleep(max(0.5, SECONDS / 200))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reader.run())
                tasks.create_task(watch())
                async with busy(proxy, seed) as traffic:
                    with_full_disk = await stretch(traffic, FULL)
                    for path in (pipe, full):
                        assert len(said(proxy, DROPPING, path)) == WORKERS, "a loss is told once by each worker"
                        assert said(proxy, WRITTEN_AGAIN, path) == []
                    make_room(full.parent)
                    with_room = await stretch(traffic, ROOM)
                await until(lambda: len(said(proxy, WRITTEN_AGAIN, full)) == WORKERS, "the end of the loss on the disk")
                reader.is_slow = False
                await until(lambda: len(said(proxy, WRITTEN_AGAIN, pipe)) == WORKERS, "the end of the loss in the pipe")
                metrics = await asyncio.to_thread(proxy.wait_until_idle)
                reader.is_over = True
            proxy.terminate()
            assert await asyncio.to_thread(proxy.wait) == 0
        logs = {path: Written.of(kept) for path, kept in ((healthy, healthy), (pipe, home / "read"), (full, full))}
    dropped = {path: sum(line["dropped"] for line in said(proxy, WRITTEN_AGAIN, path)) for path in (pipe, full)}
    tell(
        f"\n{gauges.table()}\n"
        f"healthy logs   {healthy_throughput}\nfull disk      {with_full_disk}\nroom on it     {with_room}\n"
        f"{traffic.started} connections; written: { {path.name: str(each) for path, each in logs.items()} }; "
        f"dropped: { {path.name: count for path, count in dropped.items()} }"
    )
    emitted = logs[healthy].whole
    finals = sum(count for name, count in metrics.items() if name.startswith(FINALS))
    assert logs[healthy].pieces == 0
    assert emitted == metrics["sniproxy_connections_opened_total"] + finals
    assert finals == traffic.started
    for path in (pipe, full):
        assert emitted == logs[path].whole + dropped[path], path
        assert logs[path].whole > 0
        assert (len(said(proxy, DROPPING, path)), len(said(proxy, WRITTEN_AGAIN, path))) == (WORKERS, WORKERS)
    assert metrics["sniproxy_access_log_dropped_lines_total"] == sum(dropped.values())
    for name in pids:
        for memory in ("pss", "rss", "own"):
            assert gauges.growth(name, memory) <= SLACK_KIB, (name, memory)
    healthy.unlink()


FINALS = tuple(f"sniproxy_connections_{what}_total" for what in ("denied", "failed", "closed"))


def test_what_is_wrong_with_a_log_costs_its_lines_and_nothing_else(tmp_path: Path) -> None:
    """Every connection is served, every line is written or counted, memory stays flat, and the loss ends."""
    seed = soak_seed()

    async def main() -> None:
        async with world() as here:
            healthy = await with_healthy_logs(tmp_path / "healthy", here, seed)
            await with_sick_logs(tmp_path / "sick", here, seed, healthy)

    asyncio.run(main())
