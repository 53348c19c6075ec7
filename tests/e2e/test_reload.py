"""Reloading: the real proxy, real files, and connections that live through it."""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clients import connected, hello_for
from tests.support.echoing import is_served, opened, ping
from tests.support.origins import read_to_end
from tests.support.proxy import ProxyProcess, running_proxy, wait_until

STAYS, GOES = "stays.example.org", "goes.example.org"
FAILED, RELOADED, NOTHING_NEW = "reload failed", "reloaded", "reload found nothing new"

# What the product promises is a second. A machine that tests many things at once may be slower.
PROMISE, MARGIN = 1.0, 5.0


def hosts(port: int, *names: str) -> dict[str, Any]:
    return {"hosts": {name: [f"127.0.0.1:{port}"] for name in names or (STAYS, GOES)}}


def allowing(*names: str) -> str:
    """A policy, as text."""
    rules = [{"name": name, "action": "allow", "sni": [name]} for name in names]
    return yaml.safe_dump({"rules": rules})


BOTH, ONE = allowing(STAYS, GOES), allowing(STAYS)


@dataclass
class Files:
    """The policies of a proxy: a file, a folder, and a volume of a ConfigMap; one of them allows GOES, all STAYS."""

    home: Path
    version: int = field(default=1)

    def __post_init__(self) -> None:
        (self.home / "d").mkdir()
        (self.home / "volume" / "..1").mkdir(parents=True)
        (self.home / "volume" / "..data").symlink_to("..1")
        (self.home / "volume" / "policy.yaml").symlink_to("..data/policy.yaml")

    def put(self, *, plain: str = "rules: []", folder: str = "rules: []", volume: str = "rules: []") -> None:
        (self.home / "policy.yaml").write_text(plain)
        (self.home / "d" / "a.yaml").write_text(folder)
        (self.home / "volume" / "..data" / "policy.yaml").write_text(volume)

    def publish(self, text: str) -> None:
        """A new version of the ConfigMap, as the kubelet brings it."""
        volume, before = self.home / "volume", f"..{self.version}"
        self.version += 1
        name = f"..{self.version}"
        (volume / name).mkdir()
        (volume / name / "policy.yaml").write_text(text)
        (volume / "..data_tmp").symlink_to(name)
        (volume / "..data_tmp").rename(volume / "..data")
        (volume / before / "policy.yaml").unlink()
        (volume / before).rmdir()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


POLICIES = {"files": ["policy.yaml", "d/*.yaml", "volume/policy.yaml"]}


@contextlib.contextmanager
def running(home: Path, port: int, **more: Any) -> Iterator[ProxyProcess]:
    config = {"upstream": hosts(port), "policy": POLICIES, **more}
    with running_proxy(home, config) as proxy:
        assert proxy.generation == 1
        yield proxy


# ---- What takes effect, and when ----


def by_an_editor(files: Files) -> None:
    """vim: the old file becomes a backup, a new one is written, the backup goes."""
    policy = files.home / "policy.yaml"
    policy.rename(files.home / "policy.yaml~")
    policy.write_text(ONE)
    (files.home / "policy.yaml~").unlink()


def by_renaming(files: Files) -> None:
    (files.home / "new").write_text(ONE)
    (files.home / "new").rename(files.home / "policy.yaml")


def by_a_new_folder(files: Files) -> None:
    (files.home / "e").mkdir()
    (files.home / "e" / "b.yaml").write_text(ONE)
    (files.home / "d").rename(files.home / "gone")
    (files.home / "e").rename(files.home / "d")


def by_the_config(files: Files) -> None:
    """The config names other files."""
    (files.home / "other.yaml").write_text(ONE)
    path = files.home / "sniproxy.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "policy": {"files": ["other.yaml"]}}))


DENYING = yaml.safe_dump({"rules": [{"name": "no", "action": "deny", "sni": [GOES]}]})

# Which file has allowed both, and how they change so that GOES is refused.
CHANGES: dict[str, tuple[str, Callable[[Files], object]]] = {
    "a plain write": ("plain", lambda files: (files.home / "policy.yaml").write_text(ONE)),
    "an editor": ("plain", by_an_editor),
    "a rename": ("plain", by_renaming),
    "a new version of a ConfigMap": ("volume", lambda files: files.publish(ONE)),
    "a new file that a glob finds": ("plain", lambda files: (files.home / "d" / "b.yaml").write_text(DENYING)),
    "a folder in the place of another": ("folder", by_a_new_folder),
    "a config that names other files": ("plain", by_the_config),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_in_force_in_every_worker(files: Files, echo_port: int, case: str) -> None:
    """And says so: the generation, the files, and how long it took."""
    where, change = CHANGES[case]
    files.put(**{where: BOTH})
    with running(files.home, echo_port, workers=2) as proxy:
        assert [is_served(proxy, name) for name in (STAYS, GOES)] == [True, True]
        began = time.monotonic()
        change(files)
        proxy.wait_for_generation(2)
        assert time.monotonic() - began < MARGIN
        # Enough for each of two workers to have its share.
        assert [is_served(proxy, GOES) for _ in range(20)] == [False] * 20
        assert is_served(proxy, STAYS)
        line = proxy.wait_until_said(RELOADED)
        assert (line["generation"], bool(line["files"]), line["seconds"] < MARGIN) == (2, True, True)
        assert proxy.metrics()["sniproxy_config_last_reload_success"] == 1


def test_the_next_change_is_seen_too(files: Files, echo_port: int) -> None:
    """The kubelet's new folder is another one each time."""
    files.put(volume=BOTH)
    with running(files.home, echo_port) as proxy:
        for generation, text in enumerate((ONE, BOTH, ONE, BOTH), 2):
            files.publish(text)
            proxy.wait_for_generation(generation)
            assert is_served(proxy, GOES) is (text == BOTH)


def test_a_thousand_rules_are_in_force_within_a_second(files: Files, echo_port: int) -> None:
    """From the close of the file to every worker."""
    files.put(plain=BOTH)
    names = [f"name{number}.example.org" for number in range(999)]
    with running(files.home, echo_port, workers=2) as proxy:
        text = allowing(STAYS, *names)
        (files.home / "policy.yaml").write_text(text)
        began = time.monotonic()
        wait_until(lambda: not is_served(proxy, GOES), "the new policy")
        proxy.wait_for_generation(2)
        took = time.monotonic() - began
        line = proxy.wait_until_said(RELOADED)
    assert line["rules"] == 1000
    assert took < MARGIN, f"promised within {PROMISE} s"


def test_sighup_reads_the_files_again(files: Files, echo_port: int) -> None:
    """Without a change there is no new generation, and an answer all the same."""
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy:
        proxy.process.send_signal(signal.SIGHUP)
        assert proxy.wait_until_said(NOTHING_NEW)["generation"] == 1
        assert proxy.generation == 1


def test_a_storm_of_sighups_ends_well(files: Files, echo_port: int) -> None:
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy, opened(proxy, STAYS) as sock:
        for _ in range(2000):
            proxy.process.send_signal(signal.SIGHUP)
        (files.home / "policy.yaml").write_text(ONE)
        proxy.wait_for_generation(2)
        assert (ping(sock), is_served(proxy, GOES)) == (b"ping", False)


# ---- What does not ----


def emptied(files: Files) -> None:
    (files.home / "d" / "a.yaml").unlink()


def mended(files: Files) -> None:
    (files.home / "d" / "a.yaml").write_text("rules: []")


BAD: dict[str, tuple[Callable[[Files], object], str, Callable[[Files], object]]] = {
    "a policy that is wrong": (
        lambda files: (files.home / "policy.yaml").write_text("rules:\n  - {name: a}\n"),
        "policy.yaml:2: ",
        lambda files: (files.home / "policy.yaml").write_text(BOTH),
    ),
    "a policy that is gone": (
        lambda files: (files.home / "policy.yaml").unlink(),
        "policy.yaml does not exist",
        lambda files: (files.home / "policy.yaml").write_text(BOTH),
    ),
    "a glob that finds nothing": (emptied, "no policy file matches", mended),
    "a new version of a ConfigMap that is wrong": (
        lambda files: files.publish("rules: 7"),
        "volume/policy.yaml:1: ",
        lambda files: files.publish("rules: []"),
    ),
    "a config that is wrong": (
        lambda files: (
            (files.home / "sniproxy.yaml").rename(files.home / "saved")
            and (files.home / "sniproxy.yaml").write_text("workers: 0\n")
        ),
        "sniproxy.yaml:1: workers: 0",
        lambda files: (files.home / "saved").rename(files.home / "sniproxy.yaml"),
    ),
    "a config that is gone": (
        lambda files: (files.home / "sniproxy.yaml").rename(files.home / "saved"),
        "sniproxy.yaml:1: cannot be read",
        lambda files: (files.home / "saved").rename(files.home / "sniproxy.yaml"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_bad_never_takes_effect(files: Files, echo_port: int, case: str) -> None:
    """It is told by file and line and shows in a metric. Nothing else changes, no connection ends, until the mend."""
    spoil, problem, mend = BAD[case]
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy, opened(proxy, GOES) as sock:
        spoil(files)
        line = proxy.wait_until_said(FAILED)
        assert any(problem in told for told in line["problems"]), line["problems"]
        assert line["consequence"] == "generation 1 stays in force"
        metrics = proxy.metrics()
        assert metrics["sniproxy_config_last_reload_success"] == 0
        assert metrics["sniproxy_config_generation"] == 1
        assert (ping(sock), is_served(proxy, GOES)) == (b"ping", True)
        mend(files)
        wait_until(lambda: proxy.metrics()["sniproxy_config_last_reload_success"] == 1, "a good reload")
        assert (proxy.generation, ping(sock)) == (1, b"ping")


def test_a_mend_in_a_file_that_was_never_read_is_seen(files: Files, echo_port: int) -> None:
    """The config names a file that does not exist; then it does."""
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy:
        path = files.home / "sniproxy.yaml"
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**config, "policy": {"files": ["new/later.yaml"]}}))
        proxy.wait_until_said(FAILED)
        (files.home / "new").mkdir()
        (files.home / "new" / "later.yaml").write_text(ONE)
        proxy.wait_for_generation(2)
        assert not is_served(proxy, GOES)


NUDGES: dict[str, Callable[[ProxyProcess], object]] = {
    "by itself": lambda _: None,
    "because another file changed": lambda proxy: (proxy.log_path.parent / "d" / "b.yaml").write_text("rules: []"),
    "because somebody asked": lambda proxy: proxy.process.send_signal(signal.SIGHUP),
}


@pytest.mark.parametrize("case", NUDGES)
def test_a_file_that_is_still_being_written_takes_no_effect(files: Files, echo_port: int, case: str) -> None:
    """Half of a policy may be a valid one. What it says, and what others say meanwhile, waits for the close."""
    files.put(plain=BOTH)
    policy = files.home / "policy.yaml"
    with running(files.home, echo_port) as proxy:
        with policy.open("w") as file:
            file.write(ONE)
            file.flush()
            NUDGES[case](proxy)
            waits = "reload waits for files that are open for writing"
            assert proxy.wait_until_said(waits)["files"] == [str(policy)]
            assert (proxy.generation, is_served(proxy, GOES)) == (1, True)
            file.write("# the end\n")
        proxy.wait_for_generation(2)
        assert not is_served(proxy, GOES)


# ---- What a config can change ----


def rewrite(home: Path, **changes: Any) -> None:
    path = home / "sniproxy.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_settings_are_reloaded(files: Files, echo_port: int) -> None:
    """Timeouts, limits, hosts and the access log, for what comes after."""
    files.put(plain=allowing(STAYS, "new.example.org"))
    with running(files.home, echo_port) as proxy, opened(proxy, STAYS) as sock:
        new_log = files.home / "new.log"
        rewrite(
            files.home,
            upstream=hosts(echo_port, STAYS, "new.example.org"),
            timeouts={"client_hello": "100ms"},
            limits={"connections": 2},
            access_log={"path": str(new_log), "events": ["open", "deny", "fail"]},
        )
        proxy.wait_for_generation(2)
        with opened(proxy, "new.example.org") as other:
            assert not is_served(proxy, STAYS)
            assert ping(other) == b"ping"
        wait_until(lambda: proxy.metrics()["sniproxy_connections_active"] == 1, "room for another")
        with connected(proxy.address) as silent:
            silent.sendall(b"\x16")
            read_to_end(silent)
        assert ping(sock) == b"ping"
        wait_until(lambda: len(new_log.read_text().splitlines()) == 3, "three lines")
        lines = [json.loads(line) for line in new_log.read_text().splitlines()]
        assert [(line["connectionEvent"], line["reason"]) for line in lines] == [
            ("open", ""),
            ("deny", "connection_limit"),
            ("fail", "hello_timeout"),
        ]
        assert [line["connectionEvent"] for line in proxy.lines] == ["open"]


def test_a_listener_changes_whom_it_trusts(files: Files, echo_port: int) -> None:
    """The address stays, what it asks for is another."""
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy:
        required = {"proxy_protocol": "required", "trusted_peers": ["127.0.0.0/8"]}
        rewrite(files.home, listeners=[{"address": "127.0.0.1:0", **required}])
        proxy.wait_for_generation(2)
        assert not is_served(proxy, STAYS)
        assert proxy.wait_for_finals(1)[-1]["reason"] == "bad_proxy_header"


def test_what_needs_a_restart_is_named_and_the_rest_taken(files: Files, echo_port: int) -> None:
    """One line for each key; they keep what they were."""
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy:
        (files.home / "policy.yaml").write_text(ONE)
        rewrite(
            files.home,
            workers=2,
            listeners=[{"address": "127.0.0.1:0"}, {"address": f"unix:{files.home}/new.sock"}],
            admin={"address": "127.0.0.1:1"},
        )
        wait_until(lambda: not is_served(proxy, GOES), "the new policy")
        proxy.wait_until_said("a change needs a restart")
        told = {line["change"].partition(":")[0] for line in proxy.said if line["event"] == "a change needs a restart"}
        assert told == {"workers", "listeners", "admin.address"}
        assert len(proxy.children()) == 2
        assert not (files.home / "new.sock").exists()


# ---- Processes ----


def test_a_worker_that_is_started_later_has_the_newest_policy(files: Files, echo_port: int) -> None:
    files.put(plain=BOTH)
    with running(files.home, echo_port, workers=2) as proxy:
        (files.home / "policy.yaml").write_text(ONE)
        proxy.wait_for_generation(2)
        workers = proxy.children()[:2]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(proxy.children()) == 3 and not {*workers} & {*proxy.children()}, "new workers")
        wait_until(lambda: not is_served(proxy, GOES), "a worker that answers")
        assert [is_served(proxy, GOES) for _ in range(20)] == [False] * 20
        (files.home / "policy.yaml").write_text(BOTH)
        proxy.wait_for_generation(3)
        assert [is_served(proxy, GOES) for _ in range(20)] == [True] * 20


def large(count: int) -> str:
    """A policy that takes a while to read."""
    return BOTH + "".join(f"- {{name: r{number}, action: deny, sni: [n{number}.org]}}\n" for number in range(count))


def readers(proxy: ProxyProcess) -> list[int]:
    """Children that are neither workers nor the admin process: they are nice."""
    found = []
    for pid in proxy.children():
        with contextlib.suppress(FileNotFoundError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[16]) > 0:
                found.append(pid)
    return found


def test_a_worker_that_dies_during_a_reload_comes_back_with_it(files: Files, echo_port: int) -> None:
    files.put(plain=BOTH)
    with running(files.home, echo_port, workers=2) as proxy:
        worker = proxy.children()[0]
        (files.home / "policy.yaml").write_text(large(5000))
        wait_until(lambda: readers(proxy) != [], "a reader")
        os.kill(worker, signal.SIGKILL)
        proxy.wait_for_generation(2)
        assert proxy.wait_until_said(RELOADED)["rules"] == 5002


def test_sigterm_during_a_reload_drains_at_once(files: Files, echo_port: int) -> None:
    """The reader is not waited for."""
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy:
        (files.home / "policy.yaml").write_text(large(20_000))
        wait_until(lambda: readers(proxy) != [], "a reader")
        proxy.terminate()
        assert proxy.wait() == 0
        assert proxy.times_said(RELOADED) == 0


def test_a_reader_that_dies_is_a_failed_reload(files: Files, echo_port: int) -> None:
    """For want of memory, say. The next change is read again."""
    files.put(plain=BOTH)
    with running(files.home, echo_port) as proxy:
        (files.home / "policy.yaml").write_text(large(20_000))
        wait_until(lambda: readers(proxy) != [], "a reader")
        os.kill(readers(proxy)[0], signal.SIGKILL)
        assert proxy.wait_until_said(FAILED)["problems"] == ["the process that reads the files died (signal SIGKILL)"]
        assert is_served(proxy, GOES)
        (files.home / "policy.yaml").write_text(ONE)
        proxy.wait_for_generation(2)


def test_a_worker_that_takes_nothing_is_replaced(files: Files, echo_port: int) -> None:
    """All workers come to one generation, also when one of them hangs."""
    files.put(plain=BOTH)
    with running(files.home, echo_port, workers=2) as proxy:
        worker = proxy.children()[0]
        os.kill(worker, signal.SIGSTOP)
        (files.home / "policy.yaml").write_text(ONE)
        proxy.wait_until_said("process is stuck: it takes no new generation")
        proxy.wait_for_generation(2)
        assert worker not in proxy.children()


# ---- Live connections ----


def test_live_connections_that_the_new_policy_refuses_are_closed(files: Files, echo_port: int) -> None:
    """With the reason policy_changed and what refuses them; those that stay are not touched."""
    files.put(plain=BOTH)
    with running(files.home, echo_port, workers=2) as proxy, contextlib.ExitStack() as stack:
        staying = [stack.enter_context(opened(proxy, STAYS)) for _ in range(20)]
        going = [stack.enter_context(opened(proxy, GOES)) for _ in range(20)]
        (files.home / "policy.yaml").write_text(ONE)
        began = time.monotonic()
        assert [read_to_end(sock) for sock in going] == [b""] * 20
        assert time.monotonic() - began < MARGIN
        assert [ping(sock) for sock in staying] == [b"ping"] * 20
        lines = proxy.wait_for_finals(20)
    assert {(line["requestedServerName"], line["reason"], line["responseCodeDetails"]) for line in lines[:20]} == {
        (GOES, "policy_changed", "rbac_access_denied_matched_policy[none]")
    }


def test_they_stay_where_the_config_says_so(files: Files, echo_port: int) -> None:
    """policy.rejudge: false is for new connections only."""
    files.put(plain=BOTH)
    with running(files.home, echo_port, policy={**POLICIES, "rejudge": False}) as proxy, opened(proxy, GOES) as sock:
        (files.home / "policy.yaml").write_text(ONE)
        proxy.wait_for_generation(2)
        assert (is_served(proxy, GOES), ping(sock)) == (False, b"ping")


@dataclass
class Flow:
    """A live connection on which random bytes go there and back, each checked, until it is ended."""

    name: str
    seed: int
    moved: int = 0
    ended: float = 0.0

    async def run(self, address: tuple[str, int], stop: asyncio.Event, ready: Callable[[], object]) -> None:
        dice = random.Random(self.seed)
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(hello_for(self.name))
            assert await reader.readexactly(5) == b"ready"
            ready()
            while not stop.is_set():
                data = dice.randbytes(dice.randint(1, 20_000))
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
                self.moved += len(data)
                await asyncio.sleep(0.01)
            writer.write_eof()
            assert await reader.read() == b""
        except (asyncio.IncompleteReadError, ConnectionResetError):
            self.ended = time.monotonic()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def echo_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        header = await reader.readexactly(5)
        await reader.readexactly(int.from_bytes(header[3:5], "big"))
        writer.write(b"ready")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


RELOADS, GROUPS = 50, 5
GROUP_NAMES = [f"group{number}.example.org" for number in range(GROUPS)]


async def reload_under_load(proxy: ProxyProcess, policy: Path, flows: Sequence[Flow]) -> list[float]:
    """Reload again and again while bytes flow; at every tenth reload another group is refused. When that was."""
    stop, all_ready, waiting = asyncio.Event(), asyncio.Event(), len(flows)

    def one_ready() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            all_ready.set()

    async with asyncio.TaskGroup() as group:
        for flow in flows:
            group.create_task(flow.run(proxy.address, stop, one_ready))
        await all_ready.wait()
        refused = []
        for number in range(RELOADS):
            left = GROUP_NAMES[number // (RELOADS // GROUPS) + 1 :]
            text = allowing(STAYS, *left, f"only-in-{number}.example.org")
            if number % (RELOADS // GROUPS) == 0:
                refused.append(time.monotonic())
            policy.write_text(text)
            await asyncio.to_thread(proxy.wait_for_generation, number + 2)
        stop.set()
    return refused


def test_reloading_under_load_loses_no_byte(files: Files) -> None:
    """200 connections with bytes flowing, 50 reloads: those still allowed lose nothing, the others end in time."""
    flows = [Flow(STAYS, seed) for seed in range(100)]
    flows += [Flow(name, seed) for name in GROUP_NAMES for seed in range(100 // GROUPS)]
    files.put(plain=allowing(STAYS, *GROUP_NAMES))

    async def play() -> tuple[list[float], dict[str, float]]:
        server = await asyncio.start_server(echo_async, "127.0.0.1", 0, backlog=512)
        port = server.sockets[0].getsockname()[1]
        config = {"upstream": hosts(port, STAYS, *GROUP_NAMES), "policy": POLICIES, "workers": 2}
        with running_proxy(files.home, config) as proxy:
            refused = await reload_under_load(proxy, files.home / "policy.yaml", flows)
            metrics = await asyncio.to_thread(proxy.wait_until_idle)
        server.close()
        return refused, metrics

    refused, metrics = asyncio.run(play())
    staying, going = flows[:100], flows[100:]
    assert [flow for flow in staying if flow.ended] == []
    assert min(flow.moved for flow in staying) > 0
    late = [flow.ended - refused[GROUP_NAMES.index(flow.name)] for flow in going]
    assert all(0 < seconds < MARGIN for seconds in late), (sorted(late), f"promised within {PROMISE} s")
    assert metrics['sniproxy_connections_closed_total{reason="policy_changed"}'] == 100
    assert metrics['sniproxy_connections_closed_total{reason="done"}'] == 100
