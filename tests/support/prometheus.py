"""A real Prometheus, which scrapes often and forgets soon, to ask what it makes of the proxy's metrics."""

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.proxy import PATIENCE, wait_until

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing (Debian package prometheus)"
)

Series = list[dict[str, Any]]


class Prometheus:
    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Fails the test where Prometheus finds fault with the question."""
        url = f"http://{self._address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> Series:
        series: Series = self.get("/api/v1/query", query=expression)["result"]
        return series

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=PATIENCE):
                return True
        except OSError:
            return False


@contextlib.contextmanager
def running_prometheus(home: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `target` five times a second and evaluates `rules`. Stopped at the end, by its pid."""
    config = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "sniproxy", "static_configs": [{"targets": [target]}]}],
    }
    (home / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={home / 'prometheus.yaml'}",
        f"--storage.tsdb.path={home / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(address)
        wait_until(prometheus.is_ready, "a ready Prometheus")
        yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
