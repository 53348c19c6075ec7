"""The real proxy for half an hour under everything at once: nothing of it grows, and all of it adds up.

`make soak` runs this; SOAK_SECONDS makes it shorter or longer. Two workers serve clients of every kind that `traffic`
has, while policies and configs change (right ones and wrong ones), DNS falls silent, logs are rotated and a worker is
killed now and then. One worker is never killed: it is the one whose memory tells.

The admin address tells of connections and generations, and has no word for a worker's tasks. A task that is left over
holds what it works on, so its signs are those that are measured: memory, descriptors by kind, and threads, from /proc.
"""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from sniproxy.outcome import Event, Reason
from tests.soak.gauges import SLACK_KIB, Gauges, Reading, read
from tests.soak.tally import Tally
from tests.soak.traffic import DOMAIN, KINDS, NO_DNS, Traffic, World, world
from tests.support.proxy import ProxyProcess, host_and_port, running_proxy, wait_until
from tests.support.soaking import soak_seconds, soak_seed, tell

pytestmark = pytest.mark.soak

WORKERS = 2

# Pipes for splice are kept for the next that needs one: so many at most in a worker, with two ends each.
POOLED_PIPES = 96 // WORKERS

SECONDS = soak_seconds(1800)

# Descriptors of policies and settings that are in force no more: a worker has them for as long as a connection that was
# judged by them is on its way to its upstream, and the supervisor the last eight of them for half a minute.
KEPT = {"worker that lives": 2, "admin process": 1, "supervisor": 2 * 8}

# Each fault has its turn about so often.
PAUSE = min(20.0, SECONDS / 60)

# Lines wait for so long at most before they are written, and a busy machine takes its time.
UNWRITTEN = 2.0

REASONS = {reason.word: reason.event for reason in Reason}

_LABELLED = re.compile(r'sniproxy_connections_(?:denied|failed|closed)_total\{.*\breason="(\w+)"')


def rule(name: str, *hosts: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "action": "allow", "sni": [f"{host}.{DOMAIN}" for host in hosts], **more}


def policy(*, flip: bool) -> dict[str, Any]:
    rules = [
        rule("forbidden", "forbidden", action="deny"),
        rule("limited", "limited", limits={"rate": "3/s", "burst": 3}),
        rule("rest", "short", "echo", "idle", "break", "dead", "mutated", "*.dns"),
    ]
    return {"rules": [*rules, rule("flip", "flip")] if flip else rules}


def config(world: World, idle: float = 3.0, timeout: str = "400ms") -> dict[str, Any]:
    return {
        "listeners": [
            {"address": "127.0.0.1:0"},
            {"address": "127.0.0.1:0", "proxy_protocol": "required", "trusted_peers": ["127.0.0.0/8"]},
        ],
        "upstream": {
            "port": world.ports["page"],
            "hosts": world.hosts,
            "resolver": {"nameservers": [world.names.address], "family": "ipv4", "timeout": timeout, "cache_size": 100},
            "allow_networks": ["127.0.0.0/8"],
        },
        "timeouts": {"client_hello": "1s", "idle": f"{idle}s", "drain": "5s"},
        "workers": WORKERS,
    }


@dataclass
class Soak:
    """One run: the proxy, its clients, what is done to it, and what is seen of it."""

    proxy: ProxyProcess
    home: Path
    world: World
    traffic: Traffic
    settings: dict[str, Any]
    gauges: Gauges = field(default_factory=Gauges)
    tally: Tally = field(default_factory=Tally)
    kills: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    note: str = ""
    flip: bool = True  # the policy in force allows `flip`

    def __post_init__(self) -> None:
        children = self.proxy.children()
        self.victim, self.survivor, self.admin = children

    # What is seen.

    @property
    def pids(self) -> dict[str, int]:
        return {
            "worker that lives": self.survivor,
            "worker that is killed": self.victim,
            "admin process": self.admin,
            "supervisor": self.proxy.process.pid,
        }

    async def watch(self) -> None:
        pause = max(0.5, SECONDS / 240)
        while not self.traffic.is_over:
            note, self.note = self.note, ""
            await asyncio.to_thread(self.gauges.take, self.pids, note)
            await asyncio.sleep(pause)

    # What is done to it.

    async def trouble(self) -> None:
        """One fault after the other, until it is time."""
        faults: list[Callable[[], Awaitable[None]]] = [
            self.change_policy,
            self.rotate_logs,
            self.break_policy,
            self.silence_dns,
            self.change_policy,
            self.change_config,
            self.kill_a_worker,
            self.break_config,
            self.rotate_logs,
        ]
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for fault in faults:
                await asyncio.sleep(min(PAUSE, max(0.0, until - time.monotonic())))
                if time.monotonic() >= until:
                    break
                name = fault.__name__.replace("_", " ")
                self.note = name
                await fault()
                self.done[name] += 1
        self.world.is_dns_down = False

    async def until(self, happened: Callable[[], bool], what: str) -> None:
        await asyncio.to_thread(wait_until, happened, what)

    def write(self, name: str, text: str) -> None:
        """Whole, or not at all."""
        new = self.home / f".{name}"
        new.write_text(text)
        new.rename(self.home / name)

    async def reloads(self, name: str, text: str, *, fails: bool = False) -> None:
        events = ("reload failed",) if fails else ("reloaded", "reload found nothing new")
        before = sum(map(self.proxy.times_said, events))
        self.write(name, text)
        await self.until(lambda: sum(map(self.proxy.times_said, events)) > before, f"one of {events}")

    async def change_policy(self) -> None:
        self.flip = not self.flip
        await self.reloads("policy.yaml", yaml.safe_dump(policy(flip=self.flip)))

    async def break_policy(self) -> None:
        right = (self.home / "policy.yaml").read_text()
        await self.reloads("policy.yaml", "rules: [{name: x, action: allow, sni: ['*.*.org']}]", fails=True)
        await self.reloads("policy.yaml", right)

    async def change_config(self) -> None:
        """The time that idle connections have, and the resolver, which is made anew."""
        longer = self.done["change config"] % 2 == 0
        changed = config(self.world, *((4.0, "500ms") if longer else (3.0, "400ms")))
        self.settings = {**self.settings, **changed}
        await self.reloads("sniproxy.yaml", yaml.safe_dump(self.settings))

    async def break_config(self) -> None:
        await self.reloads("sniproxy.yaml", "upstream: {prot: 443}", fails=True)
        await self.reloads("sniproxy.yaml", yaml.safe_dump(self.settings))

    async def silence_dns(self) -> None:
        """For longer than anything is cached."""
        self.world.is_dns_down = True
        await asyncio.sleep(min(PAUSE, 5.0))
        self.world.is_dns_down = False

    async def rotate_logs(self) -> None:
        old = self.home / f"access.log.{self.done['rotate logs']}"
        before = self.proxy.times_said("access log reopened")
        self.proxy.log_path.rename(old)
        self.proxy.process.send_signal(signal.SIGUSR1)
        await self.until(lambda: self.proxy.times_said("access log reopened") == before + WORKERS, "new log files")
        await asyncio.to_thread(self.tally.add, old)
        old.unlink()

    async def kill_a_worker(self) -> None:
        """While connections are under way, and none is between the kernel and the first count of it."""
        self.traffic.gate.clear()
        started = self.traffic

        def all_counted() -> bool:
            counted = self.proxy.metrics()["sniproxy_connections_accepted_total"]
            return started.connecting == 0 and counted == started.started

        await self.until(all_counted, "a count of every connection")
        self.kills.append(time.monotonic())
        os.kill(self.victim, signal.SIGKILL)
        others = {self.survivor, self.admin}
        await self.until(lambda: self.victim not in self.proxy.children(), "a death")
        await self.until(lambda: len(self.proxy.children()) == WORKERS + 1 and self._is_serving(), "a new worker")
        (self.victim,) = set(self.proxy.children()) - others
        self.traffic.gate.set()

    def _is_serving(self) -> bool:
        try:
            return bool(self.proxy.get("/readyz"))
        except OSError:
            return False


async def soak(proxy: ProxyProcess, home: Path, here: World, settings: dict[str, Any], seed: str) -> Soak:
    doors = host_and_port(proxy.addresses[0]), host_and_port(proxy.addresses[1])
    run = Soak(proxy, home, here, Traffic(seed, doors, KINDS), settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run.traffic.run())
        # Every cache has a bound of a few thousand, and is to have reached it before anything is measured.
        tasks.create_task(run.traffic.flood(("identified", "refused"), 6, min(60.0, SECONDS / 6)))
        watching = tasks.create_task(run.watch())
        try:
            await run.trouble()
        finally:
            run.traffic.is_over = True
            run.traffic.gate.set()
        await watching
    return run


def everything_adds_up(run: Soak, metrics: dict[str, float]) -> None:
    """Each connection that was started has one final line and one count, or was lost with its worker."""
    traffic, tally = run.traffic, run.tally
    counted = Counter(dict.fromkeys(REASONS, 0))
    for name, value in metrics.items():
        if match := _LABELLED.match(name):
            counted[match[1]] += int(value)
    lost = sum(tally.lost)
    assert traffic.started == len(traffic.kinds) == metrics["sniproxy_connections_accepted_total"]
    assert metrics["sniproxy_connections_accepted_total"] == counted.total() + lost
    assert metrics["sniproxy_connections_lost_total"] == lost
    assert len(tally.lost) == len(run.kills) == metrics["sniproxy_worker_restarts_total"]
    assert (metrics["sniproxy_access_log_dropped_lines_total"], metrics["sniproxy_connections_shed_total"]) == (0, 0)
    # Line by line.
    assert set(tally.finals.values()) == {1}
    assert tally.opens.keys() >= {number for number, reason in tally.reasons.items() if REASONS[reason] is Event.CLOSE}
    without = set(range(traffic.started)) - tally.finals.keys()
    unwritten = counted - Counter(tally.reasons.values())
    assert len(without) == lost + unwritten.total()
    assert tally.finals.total() + unwritten.total() == counted.total()
    unexplained = [number for number in without if not lived_through_a_kill(run, number)]
    assert unexplained == [], [traffic.kinds[number] for number in unexplained]
    opened = metrics["sniproxy_connections_opened_total"]
    assert tally.opens.total() <= opened <= tally.opens.total() + len(without)


def lived_through_a_kill(run: Soak, number: int) -> bool:
    began, ended = run.traffic.began[number], run.traffic.ended[number]
    return any(began <= kill <= ended + UNWRITTEN for kill in run.kills)


def everybody_fared_as_he_should(run: Soak) -> None:
    """Connections ended for the reasons of their kind, and clients got what they wanted."""
    traffic, reasons = run.traffic, run.tally.reasons
    wrong = Counter(
        (kind, reasons[number])
        for number, kind in enumerate(traffic.kinds)
        if number in reasons and reasons[number] not in {reason.word for reason in KINDS[kind].reasons}
    )
    assert wrong == {}
    silence = {reason.word for reason in NO_DNS}
    unexplained = [
        each
        for each in traffic.mishaps
        if not lived_through_a_kill(run, each.number) and reasons.get(each.number) not in silence
    ]
    assert unexplained == []
    assert traffic.served.keys() == KINDS.keys()


def nothing_grew(run: Soak) -> None:
    """From the second quarter to the last: memory, descriptors and threads of what was never killed."""
    for name in ("worker that lives", "admin process", "supervisor"):
        grown = {field: run.gauges.growth(name, field) for field in Reading._fields[1:]}
        for memory in ("pss", "rss", "own"):
            assert grown[memory] <= SLACK_KIB, (name, grown)
        assert grown["threads"] <= 0, (name, grown)
        assert grown["others"] <= KEPT[name], (name, grown)
        # As many connections come at all times, so that sockets come and go; pipes wait in a pool that has a bound.
        assert grown["sockets"] <= 0.2 * run.gauges.quarter(name, 2, "sockets") + 2, (name, grown)
        assert run.gauges.quarter(name, 4, "pipes") <= 2 * POOLED_PIPES, (name, grown)


def report(run: Soak) -> str:
    traffic, tally = run.traffic, run.tally
    explained = Counter(traffic.kinds[each.number] for each in traffic.mishaps)
    return "\n".join(
        [
            "",
            run.gauges.table(),
            f"{traffic.started} connections, {tally.finals.total()} final lines, lost with workers: {tally.lost}",
            f"done to it: {dict(run.done)}",
            f"served: {dict(traffic.served)}",
            f"mishaps: {dict(explained)}",
            f"reasons: {dict(Counter(tally.reasons.values()))}",
        ]
    )


def test_nothing_grows_and_everything_adds_up(tmp_path: Path) -> None:
    seed = soak_seed()

    async def main() -> None:
        async with world() as here:
            settings = config(here)
            # The proxy is a process of its own, and starting it waits: the name server must answer meanwhile.
            with running_proxy(tmp_path, settings, policy(flip=True)) as proxy:
                written = yaml.safe_load((tmp_path / "sniproxy.yaml").read_text())
                at_first = read(proxy.children()[1])
                run = await soak(proxy, tmp_path, here, written, seed)
                metrics = await asyncio.to_thread(proxy.wait_until_idle)
                at_rest = read(run.survivor)
                proxy.terminate()
                assert await asyncio.to_thread(proxy.wait) == 0
                run.tally.add(proxy.log_path)
                tell(report(run))
                everything_adds_up(run, metrics)
                everybody_fared_as_he_should(run)
                nothing_grew(run)
                assert at_rest.sockets <= at_first.sockets + 2, "sockets of connections that are over"

    asyncio.run(main())
