"""The real proxy, as a process of its own, for the end-to-end tests."""

import contextlib
import http
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sniproxy.top import UnixConnection

PATIENCE = 20.0  # seconds until a test gives up on something that must happen

Line = dict[str, Any]


@dataclass
class ProxyProcess:
    """A running proxy: where it listens, what it said, and what it logged."""

    process: subprocess.Popen[bytes]
    log_path: Path
    said_path: Path
    addresses: list[str] = field(default_factory=list)
    admin: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """The first TCP listener."""
        return host_and_port(next(address for address in self.addresses if not address.startswith("unix:")))

    @property
    def lines(self) -> list[Line]:
        """The access log, so far. One that is being written does not count: a reader may see half of a write(2)."""
        return [json.loads(line) for line in self.log_path.read_text().split("\n")[:-1]]

    @property
    def finals(self) -> list[Line]:
        """The last line of every connection that is over."""
        return [line for line in self.lines if line["connectionEvent"] in ("close", "deny", "fail")]

    @property
    def said(self) -> list[Line]:
        """The operational log, so far."""
        return [json.loads(line) for line in self.said_path.read_text().splitlines() if line.startswith("{")]

    def wait_for_finals(self, count: int) -> list[Line]:
        """The final lines, once there are `count` of them."""
        wait_until(lambda: len(self.finals) >= count, f"{count} final lines")
        return self.finals

    def wait_until_told(self) -> int:
        """How many final lines there are, once every connection so far has its own."""
        wait_until(
            lambda: len(self.finals) == self.metrics()["sniproxy_connections_accepted_total"],
            "a line of each connection",
        )
        return len(self.finals)

    def wait_until_said(self, event: str) -> Line:
        wait_until(lambda: any(line["event"] == event for line in self.said), f"the event {event!r}")
        return next(line for line in self.said if line["event"] == event)

    @property
    def generation(self) -> int:
        """The generation that every worker has."""
        return int(self.metrics()["sniproxy_config_generation"])

    def wait_for_generation(self, number: int) -> None:
        wait_until(lambda: self.generation == number, f"generation {number}")

    def wait_until_said_again(self, event: str, before: int) -> Line:
        """The newest line of an event, once there are more of them than `before`."""
        wait_until(lambda: self.times_said(event) > before, f"the event {event!r}, again")
        return [line for line in self.said if line["event"] == event][-1]

    def times_said(self, event: str) -> int:
        return sum(line["event"] == event for line in self.said)

    def metrics(self, admin: int = 0) -> dict[str, float]:
        lines = self.get("/metrics", admin).splitlines()
        series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in series}

    def get(self, path: str, admin: int = 0) -> str:
        if self.admin[admin].startswith("unix:"):
            return get_over_unix_socket(self.admin[admin].removeprefix("unix:"), path)
        with urllib.request.urlopen(f"http://{self.admin[admin]}{path}", timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text

    def wait_until_idle(self) -> dict[str, float]:
        """The metrics, once no connection is active."""
        wait_until(lambda: self.metrics()["sniproxy_connections_active"] == 0, "no active connection")
        return self.metrics()

    def children(self) -> list[int]:
        """The pids of its processes, in the order they were started: the workers, then the admin process."""
        pid = self.process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE)


def get_over_unix_socket(sock: str, path: str) -> str:
    """The body of an answer. Raises OSError where there is none, or it is a refusal."""
    with contextlib.closing(UnixConnection(sock, PATIENCE)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"{answer.status} {body}")
        return body


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Look every few milliseconds whether something has happened, for as long as patience lasts."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.01)


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def running_proxy(
    home: Path,
    config: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    *,
    arguments: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    descriptors: int | None = None,
) -> Iterator[ProxyProcess]:
    """`sniproxy run` in `home`, with `config` over the defaults of a test. Stopped at the end, by its pid.

    `descriptors` is its limit on open files. Fails the test if the proxy says something went wrong inside.
    """
    log, said = home / "access.log", home / "said.log"
    log.touch()
    settings: dict[str, Any] = {
        "listeners": [{"address": "127.0.0.1:0"}],
        "access_log": {"path": str(log)},
        "admin": {"address": "127.0.0.1:0"},
        "workers": 1,
        **(config or {}),
    }
    if policy is not None:
        (home / "policy.yaml").write_text(yaml.safe_dump(dict(policy)))
        settings["policy"] = {"files": ["policy.yaml"], **settings.get("policy", {})}
    (home / "sniproxy.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "sniproxy", "run", "--config", str(home / "sniproxy.yaml"), *arguments]

    def limit_descriptors() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with said.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            preexec_fn=limit_descriptors,  # noqa: PLW1509 - the tests start no thread before it
        )
    proxy = ProxyProcess(process, log, said)
    try:
        wait_until(lambda: process.poll() is not None or bool(proxy.said), "the first word of the proxy")
        assert process.poll() is None, said.read_text()
        listening = proxy.wait_until_said("listening")
        proxy.addresses, proxy.admin = listening["addresses"], listening["admin"]
        if proxy.admin:
            wait_until(lambda: is_ready(proxy), "a ready proxy")
        yield proxy
    finally:
        if process.poll() is None:
            proxy.terminate()
        process.wait(timeout=PATIENCE)
    assert "Traceback" not in said.read_text(), said.read_text()


def is_ready(proxy: ProxyProcess) -> bool:
    """Whether /readyz says yes."""
    try:
        return bool(proxy.get("/readyz"))
    except OSError:
        return False
