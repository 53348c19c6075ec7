"""Files that fail: a full disk, a log that nobody reads or whose folder is gone, a config that cannot be read.

And the wall clock, which is also something that the machine may take away: it jumps, and nothing may hang on it.
"""

import calendar
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import allowing
from tests.support.clients import ask, hello_for
from tests.support.dns_server import dnsmasq
from tests.support.echoing import NAME, echo, is_served, opened, ping
from tests.support.faults import HELLO, end_of, holding, to
from tests.support.origins import origin
from tests.support.proxy import PATIENCE, Line, ProxyProcess, is_ready, running_proxy, wait_until

DROPPING, WRITTEN_AGAIN = "access log lines are being dropped", "access log lines are written again"
FAILED = "reload failed"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with origin(echo) as port:
        yield port


def dropped(proxy: ProxyProcess) -> float:
    return proxy.metrics()["sniproxy_access_log_dropped_lines_total"]


def serve(proxy: ProxyProcess, times: int) -> None:
    assert [is_served(proxy) for _ in range(times)] == [True] * times


def whole_lines(path: Path) -> list[Line]:
    return parsed(path.read_bytes()) if path.exists() else []


def parsed(text: bytes) -> list[Line]:
    """The lines that are whole."""
    whole = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            whole.append(json.loads(line))
    return whole


# ---- The access log ----


_DISK = 8 << 20


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of _DISK bytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system wants root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_disk_that_fills_up_and_is_cleared_costs_the_lines_between(tmp_path: Path, port: int) -> None:
    """Every connection is served; each line is either in the file, whole, or counted as dropped."""
    with small_disk(tmp_path / "disk") as disk:
        logs = [{"path": str(disk / "access.log")}, {"path": str(tmp_path / "access.log")}]
        (disk / "filler").write_bytes(bytes(_DISK - 50_000))
        with running_proxy(tmp_path, to(port, access_log=logs), allowing(NAME)) as proxy, holding(proxy):
            wait_until(lambda: is_served(proxy) and proxy.times_said(DROPPING) == 2, "losses of both workers")
            (disk / "filler").unlink()
            wait_until(lambda: is_served(proxy) and proxy.times_said(WRITTEN_AGAIN) == 2, "lines from both workers")
            served = proxy.wait_until_told()
            told = [line for line in proxy.said if line["event"] == DROPPING]
            wait_until(
                lambda: len(whole_lines(disk / "access.log")) + dropped(proxy) >= 2 * served,
                "every line written or counted",
            )
            assert len(whole_lines(disk / "access.log")) + dropped(proxy) == 2 * served
    assert {line["cause"] for line in told} == {"no space left on device"}


@contextlib.contextmanager
def standard_output(descriptor: int) -> Iterator[None]:
    """What is started meanwhile has this as its standard output."""
    saved = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def test_a_reader_of_standard_output_that_leaves_takes_only_lines_with_it(tmp_path: Path, port: int) -> None:
    """EPIPE, and no SIGPIPE: lines are dropped and counted; a worker that starts without a reader serves, too."""
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        with standard_output(writer):
            logs = [{"path": "/dev/stdout"}, {"path": str(tmp_path / "access.log")}]
            proxy = stack.enter_context(running_proxy(tmp_path, to(port, access_log=logs), allowing(NAME)))
        os.close(writer)
        stack.enter_context(holding(proxy))
        serve(proxy, 5)
        proxy.wait_for_finals(5)
        wait_until(lambda: len(parsed(peek(reader))) == 10, "ten lines")
        os.close(reader)
        serve(proxy, 5)
        wait_until(lambda: dropped(proxy) == 10, "ten dropped lines")
        workers = proxy.children()[:2]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(proxy.children()) == 3 and not {*workers} & {*proxy.children()}, "new workers")
        serve(proxy, 5)
        wait_until(lambda: dropped(proxy) == 20, "ten more")
        assert {line["cause"] for line in proxy.said if line["event"] == DROPPING} == {"broken pipe"}


_peeked: dict[int, bytes] = {}


def peek(descriptor: int) -> bytes:
    """All that has come so far."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(descriptor, 1 << 16):
            _peeked[descriptor] = _peeked.get(descriptor, b"") + chunk
    return _peeked.get(descriptor, b"")


def test_a_log_whose_folder_is_removed_goes_on_until_there_is_another(tmp_path: Path, port: int) -> None:
    """SIGUSR1 finds no folder, and says so; once there is one, the next SIGUSR1 opens the file in it."""
    folder = tmp_path / "logs"
    folder.mkdir()
    logs = [{"path": str(folder / "access.log")}, {"path": str(tmp_path / "access.log")}]
    with running_proxy(tmp_path, to(port, access_log=logs), allowing(NAME)) as proxy, holding(proxy):
        shutil.rmtree(folder)
        proxy.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: proxy.times_said("cannot reopen the access log; the old one goes on") == 2, "two complaints")
        serve(proxy, 10)
        proxy.wait_for_finals(10)
        folder.mkdir()
        proxy.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: proxy.times_said("access log reopened") == 2, "two new files")
        serve(proxy, 10)
        wait_until(lambda: len(whole_lines(folder / "access.log")) == 20, "twenty lines")
        assert dropped(proxy) == 0


def test_a_worker_that_starts_without_a_log_serves(tmp_path: Path, port: int) -> None:
    """It died while the log's folder was gone. Its lines are counted as dropped until there is a folder again."""
    folder = tmp_path / "logs"
    folder.mkdir()
    logs = [{"path": str(folder / "access.log")}, {"path": str(tmp_path / "access.log")}]
    with running_proxy(tmp_path, to(port, access_log=logs), allowing(NAME)) as proxy, holding(proxy):
        shutil.rmtree(folder)
        workers = proxy.children()[:2]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(proxy.children()) == 3 and not {*workers} & {*proxy.children()}, "new workers")
        wait_until(lambda: is_ready(proxy), "a ready proxy")
        serve(proxy, 10)
        wait_until(lambda: dropped(proxy) == 20, "twenty dropped lines")
        assert {line["cause"] for line in proxy.said if line["event"] == DROPPING} == {"no such file or directory"}
        folder.mkdir()
        serve(proxy, 10)
        wait_until(lambda: len(whole_lines(folder / "access.log")) == 20, "twenty lines")
        assert dropped(proxy) == 20


# ---- Config and policy ----
# A file that is gone, and one that is wrong, are in test_reload.py.


@dataclass(frozen=True)
class Fault:
    """Something in the place of a file, the complaint about it, and what takes it away again."""

    spoil: Callable[[Path], object]
    complaint: str
    mend: Callable[[Path], object] = Path.unlink


FAULTS = {
    "a folder": Fault(Path.mkdir, "is a ", Path.rmdir),
    "a link to nowhere": Fault(lambda path: path.symlink_to("nowhere"), ""),
    "a device without end": Fault(lambda path: path.symlink_to("/dev/zero"), "is larger than"),
    "a pipe that nobody writes to": Fault(os.mkfifo, "a pipe that nobody writes to"),
}


@pytest.mark.parametrize("name", ["sniproxy.yaml", "policy.yaml"])
def test_what_stands_in_the_place_of_a_file_never_takes_effect(tmp_path: Path, port: int, name: str) -> None:
    """It is told, with the file, and shows in the metric; what was in force serves on, until the file is back."""
    path, saved = tmp_path / name, tmp_path / "saved"
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy), opened(proxy) as live:
        for case, fault in FAULTS.items():
            before = proxy.times_said(FAILED)
            path.rename(saved)
            fault.spoil(path)
            wait_until(lambda: complaint_about(proxy, path, fault.complaint, before), f"a complaint about {case}")  # noqa: B023
            assert proxy.metrics()["sniproxy_config_last_reload_success"] == 0
            assert (ping(live), is_served(proxy), proxy.generation) == (b"ping", True, 1)
            fault.mend(path)
            saved.rename(path)
            wait_until(lambda: proxy.metrics()["sniproxy_config_last_reload_success"] == 1, "a good reload")
            assert (ping(live), proxy.generation) == (b"ping", 1)


def complaint_about(proxy: ProxyProcess, path: Path, text: str, before: int = 0) -> bool:
    """Whether a reload has failed since so many had, because of a file, and with this text."""
    failures = [line["problems"] for line in proxy.said if line["event"] == FAILED][before:]
    return any(str(path) in problem and text in problem for problems in failures for problem in problems)


def test_a_config_that_is_gone_once_it_was_read_is_no_config(tmp_path: Path) -> None:
    """`--config <(command)`: a proxy reads its config more than once. It must not take the end of a pipe for one."""
    reader, writer = os.pipe()
    os.write(writer, b"admin: {address: '127.0.0.1:0'}\nlisteners: [{address: '127.0.0.1:0'}]\n")
    os.close(writer)
    command = [sys.executable, "-m", "sniproxy", "run", "--config", f"/dev/fd/{reader}"]
    ended = subprocess.run(command, pass_fds=[reader], capture_output=True, text=True, timeout=PATIENCE, check=False)
    os.close(reader)
    assert ended.returncode == 1
    assert f"/dev/fd/{reader}:1: cannot be read: a pipe that nobody writes to" in ended.stderr


_PR_SET_SECUREBITS, _SECBIT_NOROOT = 28, 1  # linux/prctl.h, linux/securebits.h


@contextlib.contextmanager
def root_is_nobody_special() -> Iterator[None]:
    """What is started meanwhile by root has no capability, so that it may read what the mode of a file says."""
    libc = ctypes.CDLL(None, use_errno=True)
    special = os.geteuid() == 0
    if special and libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT, 0, 0, 0) != 0:
        pytest.skip("root cannot give up its capabilities here")
    try:
        yield
    finally:
        if special:
            assert libc.prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0) == 0


def test_a_file_that_may_not_be_read_never_takes_effect(tmp_path: Path, port: int) -> None:
    """Whoever may not read it may still see that it was forbidden, and that it no longer is."""
    with contextlib.ExitStack() as stack:
        with root_is_nobody_special():
            proxy = stack.enter_context(running_proxy(tmp_path, to(port), allowing(NAME)))
        stack.enter_context(holding(proxy))
        live = stack.enter_context(opened(proxy))
        for path in (tmp_path / "sniproxy.yaml", tmp_path / "policy.yaml"):
            path.chmod(0)
            wait_until(lambda: complaint_about(proxy, path, "permission denied"), f"a complaint about {path}")  # noqa: B023
            assert proxy.metrics()["sniproxy_config_last_reload_success"] == 0
            assert (ping(live), is_served(proxy)) == (b"ping", True)
            path.chmod(0o644)
            wait_until(lambda: proxy.metrics()["sniproxy_config_last_reload_success"] == 1, "a good reload")
            assert (ping(live), proxy.generation) == (b"ping", 1)


# ---- The wall clock ----


@dataclass(frozen=True)
class WallClock:
    """The wall clock of what is started in `environment`: the machine's, and so many hours."""

    file: Path
    library: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": self.library,
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",  # look into the file at every call
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set_ahead(self, hours: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{hours:+d}h")
        new.rename(self.file)


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    found = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), *Path("/usr/lib/faketime").glob("libfaketime.so.1")]
    if not found:
        pytest.skip("libfaketime is not installed (Debian package faketime)")
    clock = WallClock(tmp_path / "clock", str(found[0]))
    clock.set_ahead(0)
    return clock


def hours_ahead(proxy: ProxyProcess, name: str) -> int:
    """By how much a line about `name` that is just told is ahead of the machine's clock."""
    wait_until(lambda: any(line["requestedServerName"] == name for line in proxy.finals), "its line")
    (line,) = [line for line in proxy.finals if line["requestedServerName"] == name]
    told = calendar.timegm(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S"))
    return round((told - time.time()) / 3600)


RARE, RESOLVED = "rare.wikipedia.org", "resolved.wikipedia.org"


def test_a_clock_that_jumps_moves_the_times_in_the_log_and_nothing_else(
    tmp_path: Path, port: int, wall_clock: WallClock
) -> None:
    """By hours, forward and back. Time-outs neither come early nor fail to come, what DNS said holds for as long as it
    said, a rate is no faster, nobody is taken for stuck, and a connection is as old as it is.
    """
    rules = [
        {"name": "rare", "action": "allow", "sni": [RARE], "limits": {"rate": "1/m", "burst": 1}},
        {"name": "others", "action": "allow", "sni": [NAME, RESOLVED]},
    ]
    hosts = {name: [f"127.0.0.1:{port}"] for name in (NAME, RARE)}
    with contextlib.ExitStack() as stack:
        nameserver = stack.enter_context(dnsmasq(f"host-record={RESOLVED},127.0.0.1"))
        resolver = {"nameservers": [nameserver], "family": "ipv4", "min_ttl": "1h", "max_ttl": "1h"}
        upstream = {"hosts": hosts, "port": port, "resolver": resolver, "allow_networks": ["127.0.0.0/8"]}
        timeouts = {"client_hello": "400ms", "idle": "1h", "drain": "300ms"}
        config = {"upstream": upstream, "timeouts": timeouts, "workers": 2}
        proxy = stack.enter_context(
            running_proxy(tmp_path, config, {"rules": rules}, environment=wall_clock.environment)
        )
        assert is_served(proxy, RARE)
        with holding(proxy), opened(proxy) as live:
            for step, hours in enumerate((0, 7, -24 * 400)):
                wall_clock.set_ahead(hours)
                assert ask(proxy.address, hello_for(f"step-{step}.example.org")) == "access_denied"
                assert hours_ahead(proxy, f"step-{step}.example.org") == hours
                assert ask(proxy.address, HELLO[:50]) == "internal_error"
                assert [is_served(proxy, RESOLVED) for _ in range(5)] == [True] * 5
                assert ask(proxy.address, hello_for(RARE)) == "access_denied"
                (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"rules": rules}) + f"# {step}\n")
                wait_until(lambda step=step: proxy.times_said("reload found nothing new") > step, "a reload")  # type: ignore[misc]
                assert (ping(live), proxy.get("/healthz")) == (b"ping", "no worker is stuck\n")
        assert Counter(line["reason"] for line in proxy.finals) == {
            "default": 3,
            "hello_timeout": 3,
            "rate_limited": 3,
            "done": 1 + 15 + 1,
        }
        assert all(0 <= float(line["connectionDuration"][:-1]) < 600 for line in proxy.finals)
        misses = proxy.metrics()['sniproxy_dns_cache_requests_total{result="miss"}']
        assert misses <= 2  # one a worker
        with opened(proxy) as live:
            proxy.terminate()
            assert end_of(live) == "end"
        assert proxy.wait() == 0
        proxy.wait_for_finals(27)
        assert [line["reason"] for line in proxy.finals].count("drain") == 1
