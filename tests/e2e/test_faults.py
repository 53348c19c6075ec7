"""Processes that are killed, stopped or signalled, one or all of them, while connections are live."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest
import yaml

from tests.e2e.conftest import allowing
from tests.support.clients import connected
from tests.support.echoing import NAME, echo, is_served, opened, ping
from tests.support.faults import HELLO, end_of, flowing, holding, is_alive, reasons, receive, to
from tests.support.origins import origin, read_exactly
from tests.support.proxy import ProxyProcess, is_ready, running_proxy, wait_until

DIED, DIED_STOPPING = "process died", "process died while stopping"

# Connections, so many that each of two workers has some.
CROWD = 32


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with origin(echo) as port:
        yield port


def wait_for_new_workers(proxy: ProxyProcess, old: list[int]) -> None:
    wait_until(lambda: len(proxy.children()) == 3 and not {*old} & {*proxy.children()}, "new workers")
    wait_until(lambda: is_ready(proxy), "a ready proxy")


def lost(proxy: ProxyProcess) -> list[int]:
    return [line["connections"] for line in proxy.lines if line["connectionEvent"] == "worker_lost"]


# ---- Workers that die ----


def test_a_killed_worker_frees_its_sockets_and_no_others(tmp_path: Path, port: int) -> None:
    """Its clients see their end at once, whatever they were doing; bytes of the other worker's flow on."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy), contextlib.ExitStack() as stack:
        idle = [stack.enter_context(opened(proxy)) for _ in range(20)]
        undecided = [stack.enter_context(connected(proxy.address)) for _ in range(10)]
        for sock in undecided:
            sock.sendall(HELLO[:50])
        wait_until(lambda: proxy.metrics()["sniproxy_connections_active"] == 30, "30 connections")
        worker = proxy.children()[0]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: lost(proxy) != [], "a line of the loss")
        assert proxy.metrics()["sniproxy_connections_active"] == 30 - lost(proxy)[0]
        alive = 0
        for sock in idle:
            with contextlib.suppress(OSError):
                alive += ping(sock) == b"ping"
        for sock in undecided:
            with contextlib.suppress(OSError):
                sock.sendall(HELLO[50:])
                alive += read_exactly(sock, 5) == b"ready"
        assert lost(proxy) == [30 - alive]
        assert is_served(proxy)


def test_all_workers_killed_at_once_come_back(tmp_path: Path, port: int) -> None:
    """Every live connection sees its end; who came while nobody was there waits, and is served."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy), contextlib.ExitStack() as stack:
        live = [stack.enter_context(opened(proxy)) for _ in range(20)]
        workers = proxy.children()[:2]
        # Stopped first, so that neither accepts what comes before the other is dead.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in workers:
                os.kill(pid, number)
        early = [stack.enter_context(connected(proxy.address)) for _ in range(20)]
        for sock in early:
            sock.sendall(HELLO)
        assert {end_of(sock) for sock in live} <= {"end", "reset"}
        assert [read_exactly(sock, 5) for sock in early] == [b"ready"] * 20
        wait_for_new_workers(proxy, workers)
        wait_until(lambda: len(lost(proxy)) == 2, "a line of each worker's loss")
        assert sum(lost(proxy)) == 20
        metrics = proxy.metrics()
    assert metrics["sniproxy_connections_lost_total"] == 20
    assert metrics["sniproxy_connections_accepted_total"] == 40
    assert metrics["sniproxy_worker_restarts_total"] == 2


def test_a_worker_that_keeps_dying_is_started_later_and_later(tmp_path: Path, port: int) -> None:
    """And then the next one dies: the pause before each start is twice the one before. The other worker serves."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy):
        stays = proxy.children()[1:]
        with contextlib.ExitStack() as stack:
            live = [stack.enter_context(opened(proxy)) for _ in range(20)]
            for deaths in range(1, 4):
                wait_until(lambda: len(proxy.children()) == 3, "a worker")
                (worker,) = {*proxy.children()} - {*stays}
                os.kill(worker, signal.SIGKILL)
                wait_until(lambda deaths=deaths: proxy.times_said(DIED) == deaths, "its death")  # type: ignore[misc]
            alive = 0
            for sock in live:
                with contextlib.suppress(OSError):
                    alive += ping(sock) == b"ping"
        wait_until(lambda: is_ready(proxy), "a ready proxy")
        assert is_served(proxy)
        pauses = [line["restart_in"] for line in proxy.said if line["event"] == DIED]
        assert [later / sooner for sooner, later in itertools.pairwise(pauses)] == [2.0] * 2
        assert (lost(proxy)[0], lost(proxy)[1:]) == (20 - alive, [0] * 2)


def test_a_dead_admin_process_is_replaced_and_nobody_waits(tmp_path: Path, port: int) -> None:
    """What it told is in the memory of others, and goes on where it was."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy), opened(proxy) as sock:
        before = proxy.metrics()["sniproxy_connections_accepted_total"]
        admin = proxy.children()[2]
        os.kill(admin, signal.SIGKILL)
        assert ping(sock) == b"ping"
        wait_until(lambda: admin not in proxy.children() and len(proxy.children()) == 3, "a new admin process")
        wait_until(lambda: is_ready(proxy), "its answer")
        assert proxy.metrics()["sniproxy_connections_accepted_total"] == before
        assert lost(proxy) == []


def test_a_worker_that_is_told_to_end_lets_its_connections_finish(tmp_path: Path, port: int) -> None:
    """SIGTERM to the worker itself, by whoever means well: it drains, and another takes its place."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy), contextlib.ExitStack() as stack:
        live = [stack.enter_context(opened(proxy)) for _ in range(CROWD)]
        workers = proxy.children()[:2]
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: proxy.times_said("draining") == 2, "two workers that drain")
        assert [ping(sock) for sock in live] == [b"ping"] * CROWD
        stack.close()
        wait_for_new_workers(proxy, workers)
        assert is_served(proxy)
        assert (lost(proxy), reasons(proxy.wait_for_finals(CROWD + 1))) == ([0, 0], ["done"] * (CROWD + 1))


# ---- Workers that hang ----


@pytest.mark.soak
def test_a_worker_that_hangs_shows_in_healthz_and_goes_on_when_it_can(tmp_path: Path, port: int) -> None:
    """SIGSTOP: the others serve. Once it goes on, whoever waited for it is served, and no byte is lost."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy), contextlib.ExitStack() as stack:
        live = [stack.enter_context(opened(proxy)) for _ in range(20)]
        assert proxy.get("/healthz") == "no worker is stuck\n"
        os.kill(proxy.children()[0], signal.SIGSTOP)
        waiting = [stack.enter_context(connected(proxy.address)) for _ in range(20)]
        for sock in (*live, *waiting):
            sock.sendall(HELLO if sock in waiting else b"ping")
        wait_until(lambda: not is_healthy(proxy), "a stuck worker")
        with pytest.raises(HTTPError, match="503") as refused:
            proxy.get("/healthz")
        assert refused.value.read() == b"stuck workers: [0]\n"
        os.kill(proxy.children()[0], signal.SIGCONT)
        assert [read_exactly(sock, 4) for sock in live] == [b"ping"] * 20
        assert [read_exactly(sock, 5) for sock in waiting] == [b"ready"] * 20
        wait_until(lambda: is_healthy(proxy), "a worker that is not stuck")
        assert proxy.metrics()["sniproxy_worker_restarts_total"] == 0


def is_healthy(proxy: ProxyProcess) -> bool:
    try:
        return bool(proxy.get("/healthz"))
    except OSError:
        return False


@pytest.mark.soak
def test_a_worker_that_hangs_does_not_keep_the_proxy_from_ending(tmp_path: Path, port: int) -> None:
    """It has the time of the drain and some grace, and is killed; what it held is told as lost."""
    config = to(port, timeouts={"drain": "200ms"}, workers=1)
    with running_proxy(tmp_path, config, allowing(NAME)) as proxy, opened(proxy) as sock:
        os.kill(proxy.children()[0], signal.SIGSTOP)
        proxy.terminate()
        assert end_of(sock) in ("end", "reset")
        assert proxy.wait() == 0
        assert proxy.times_said("process was killed") == 1
        assert lost(proxy) == [1]


# ---- The supervisor ----


def test_a_killed_supervisor_leaves_a_free_port_and_live_connections(tmp_path: Path, port: int) -> None:
    """Its workers drain: what is live goes on, and another proxy can have the address meanwhile. Then all are gone."""
    config = to(port)
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with running_proxy(tmp_path / "old", config, allowing(NAME)) as old, contextlib.ExitStack() as stack:
        live = [stack.enter_context(opened(old)) for _ in range(CROWD)]
        children = old.children()
        old.process.kill()
        old.process.wait()
        wait_until(lambda: old.times_said("draining") == 2, "two workers that drain")
        again = {**config, "listeners": [{"address": f"127.0.0.1:{old.address[1]}"}]}
        with running_proxy(tmp_path / "new", again, allowing(NAME)) as new:
            assert [ping(sock) for sock in live] == [b"ping"] * CROWD
            assert is_served(new)
            stack.close()
            wait_until(lambda: not any(map(is_alive, children)), "the end of every process")
            assert reasons(new.wait_for_finals(1)) == ["done"]
        assert reasons(old.finals) == ["done"] * CROWD


def test_without_a_supervisor_the_drain_has_its_end(tmp_path: Path, port: int) -> None:
    """timeouts.drain holds for workers whose supervisor was killed, too: no connection keeps one for ever."""
    with running_proxy(tmp_path, to(port, timeouts={"drain": "300ms"}), allowing(NAME)) as proxy:
        with contextlib.ExitStack() as stack:
            live = [stack.enter_context(opened(proxy)) for _ in range(CROWD)]
            children = proxy.children()
            proxy.process.kill()
            assert [end_of(sock) for sock in live] == ["end"] * CROWD
        wait_until(lambda: not any(map(is_alive, children)), "the end of every process")
        assert reasons(proxy.finals) == ["drain"] * CROWD


# ---- Signals ----


def storm(pids: Callable[[], list[int]], numbers: list[signal.Signals], stop: threading.Event, seed: int) -> int:
    """Signals to processes, both as the dice say, until `stop`. How many."""
    dice, sent = random.Random(seed), 0
    while not stop.wait(0.0005):
        for _ in range(5):
            with contextlib.suppress(ProcessLookupError, ValueError, IndexError):
                os.kill(dice.choice(pids()), dice.choice(numbers))
                sent += 1
    return sent


@contextlib.contextmanager
def storming(pids: Callable[[], list[int]], *numbers: signal.Signals, seed: int = 1) -> Iterator[None]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        storms = pool.submit(storm, pids, list(numbers), stop, seed)
        try:
            yield
        finally:
            stop.set()
            assert storms.result() > 0


def test_no_process_dies_of_a_signal_that_it_can_survive(tmp_path: Path, port: int) -> None:
    """SIGHUP, SIGUSR1 and SIGCHLD by the hundred, to all, while bytes flow and policies change: nothing is lost."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy):
        everybody = [proxy.process.pid, *proxy.children()]
        with flowing(proxy, 6) as moved:
            with storming(lambda: everybody, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGURG):
                for generation in range(2, 6):
                    names = [NAME, f"only-{generation}.example.org"]
                    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(allowing(*names)))
                    proxy.wait_for_generation(generation)
                before = sum(moved)
                wait_until(lambda: sum(moved) > before + 500_000, "bytes that flow")
        assert min(moved) > 0
        assert set(everybody[1:]) <= set(proxy.children())
        assert proxy.times_said(DIED) == 0
        assert proxy.metrics()["sniproxy_config_last_reload_success"] == 1


def test_a_worker_may_be_asked_for_a_new_log_before_it_has_one(tmp_path: Path, port: int) -> None:
    """SIGUSR1 while processes start, and start again: nobody dies of it."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy):
        pid = proxy.process.pid
        with storming(lambda: [pid, *proxy.children()], signal.SIGUSR1, signal.SIGHUP):
            workers = proxy.children()[:2]
            for each in workers:
                os.kill(each, signal.SIGKILL)
            wait_for_new_workers(proxy, workers)
        assert is_served(proxy)
        died = {line["status"] for line in proxy.said if line["event"] == DIED}
        assert died == {"signal SIGKILL"}


@pytest.mark.parametrize("attempt", range(2))
def test_a_drain_survives_every_signal(tmp_path: Path, port: int, attempt: int) -> None:
    """SIGTERM again and again, SIGHUP and SIGUSR1, to the last moment: the live ones finish, and it ends with 0."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy:
        pid, everybody = proxy.process.pid, [proxy.process.pid, *proxy.children()]

        def alive() -> list[int]:
            return [each for each in everybody if each == pid or is_alive(each)] if proxy.process.poll() is None else []

        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
        with contextlib.ExitStack() as stack:
            live = [stack.enter_context(opened(proxy)) for _ in range(CROWD)]
            proxy.terminate()
            proxy.wait_until_said("stopping")
            with storming(alive, *numbers, seed=attempt):
                (tmp_path / "policy.yaml").write_text("rules: 7")
                assert [ping(sock) for sock in live] == [b"ping"] * CROWD
                stack.close()
                assert proxy.wait() == 0
        assert reasons([line for line in proxy.finals if line["requestedServerName"] == NAME]) == ["done"] * CROWD
        assert proxy.times_said(DIED_STOPPING) == 0
        assert lost(proxy) == []
        assert not any(map(is_alive, everybody))


def test_sigterm_to_every_process_at_once_is_a_drain(tmp_path: Path, port: int) -> None:
    """As systemd does it, to the whole control group."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, contextlib.ExitStack() as stack:
        live = [stack.enter_context(opened(proxy)) for _ in range(CROWD)]
        children = proxy.children()
        for pid in (*children, proxy.process.pid):
            os.kill(pid, signal.SIGTERM)
        proxy.wait_until_said("stopping")
        assert [ping(sock) for sock in live] == [b"ping"] * CROWD
        stack.close()
        assert proxy.wait() == 0
        assert reasons(proxy.finals) == ["done"] * CROWD
        assert not any(map(is_alive, children))


@pytest.mark.parametrize("attempt", range(2))
def test_sigterm_while_it_starts_ends_it(tmp_path: Path, port: int, attempt: int) -> None:
    """As soon as it listens, with workers that are half there: it ends with 0, and nothing is told as lost."""
    with running_proxy(tmp_path, to(port, admin={"address": None}), allowing(NAME)) as proxy:
        proxy.terminate()
        assert proxy.wait() == 0
        assert [line["event"] for line in proxy.said if line["level"] == "error"] == []
        assert lost(proxy) == []


def test_sighup_while_it_drains_changes_nothing(tmp_path: Path, port: int) -> None:
    """A policy that would refuse what is live comes too late."""
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy:
        with opened(proxy) as sock:
            proxy.terminate()
            proxy.wait_until_said("draining")
            (tmp_path / "policy.yaml").write_text(yaml.safe_dump(allowing("other.example.org")))
            for _ in range(100):
                proxy.process.send_signal(signal.SIGHUP)
            assert ping(sock) == b"ping"
        assert proxy.wait() == 0
        assert reasons([line for line in proxy.finals if line["requestedServerName"] == NAME]) == ["done"]
        assert proxy.times_said("reloaded") == 0


# ---- All of it ----

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))


@dataclass
class Mischief:
    """What may happen to the workers of a proxy and to its policy, one thing at a time, as the dice say."""

    proxy: ProxyProcess
    admin: int
    policy: Path
    dice: random.Random

    def __post_init__(self) -> None:
        self._good = self.policy.read_text()

    def workers(self) -> list[int]:
        return [pid for pid in self.proxy.children() if pid != self.admin]

    def send(self, number: signal.Signals, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def one(self) -> None:
        wait_until(lambda: len(self.workers()) >= 2, "two workers")
        pids = self.workers()
        match self.dice.choice(("kill", "kill all", "stop", "end", "shower", "spoil", "mend")):
            case "kill":
                self.send(signal.SIGKILL, self.dice.choice(pids))
            case "kill all":
                self.send(signal.SIGKILL, *pids)
            case "stop":
                self.send(signal.SIGSTOP, *pids)
                threading.Event().wait(self.dice.random())
                self.send(signal.SIGCONT, *pids)
            case "end":
                self.send(signal.SIGTERM, self.dice.choice(pids))
            case "shower":
                for _ in range(500):
                    number = self.dice.choice((signal.SIGHUP, signal.SIGUSR1))
                    self.send(number, self.dice.choice([self.proxy.process.pid, *pids]))
            case "spoil":
                self.policy.write_text("rules: 7")
            case "mend":
                self.policy.write_text(self._good)


@pytest.mark.soak
def test_a_minute_of_mischief(tmp_path: Path, port: int) -> None:
    """Workers die, hang, end and are showered with signals while clients come and go.

    Who loses a connection lost it with a worker, and nobody gets a byte that is wrong.
    """
    seed = random.randrange(2**32)
    over = threading.Event()

    def come_and_go(proxy: ProxyProcess, number: int) -> int:
        dice, broken = random.Random(seed + number), 0
        while not over.is_set():
            data = dice.randbytes(dice.randint(1, 50_000))
            try:
                with opened(proxy) as sock:
                    sock.sendall(data)
                    answer = receive(sock, len(data))
            except (OSError, AssertionError):
                broken += 1
                continue
            assert data.startswith(answer), f"seed {seed}"
            broken += answer != data
        return broken

    with running_proxy(tmp_path, to(port, timeouts={"drain": "1s"}), allowing(NAME)) as proxy:
        mischief = Mischief(proxy, proxy.children()[2], tmp_path / "policy.yaml", random.Random(seed))
        with holding(proxy, tells_all=False), ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(come_and_go, proxy, number) for number in range(8)]
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                mischief.one()
                threading.Event().wait(mischief.dice.random())
            over.set()
            broken = sum(client.result() for client in clients)
        assert proxy.metrics()["sniproxy_worker_restarts_total"] > 0
        drained = sum(line["reason"] == "drain" for line in proxy.finals)
        assert broken <= proxy.metrics()["sniproxy_connections_lost_total"] + drained, f"seed {seed}"
