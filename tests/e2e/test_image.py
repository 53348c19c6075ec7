"""The image that the Dockerfile makes: built, and run as it says that it wants to be. `make image-test` starts this."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from errno import EROFS
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import allowing
from tests.support.clients import alert_of, connected, fetch, hello_for
from tests.support.helm import ROOT, every_values_file
from tests.support.image import (
    IMAGE,
    ImageConfig,
    beside,
    build_image,
    buildah,
    buildah_command,
    in_read_only_root,
    mounted,
    need_builder,
    working_container,
)
from tests.support.origins import Authority, page_of
from tests.support.proxy import PATIENCE, wait_until

pytestmark = pytest.mark.soak  # minutes, the first time

UID = 10001
DE = "de.wikipedia.org"
CONFIG_FOLDER = "/etc/sniproxy/config"


@pytest.fixture(scope="module")
def image() -> ImageConfig:
    need_builder()
    build_image()
    return ImageConfig.read()


@pytest.fixture
def volume(wikipedias: dict[str, list[str]]) -> Iterator[Path]:
    """A folder of the image's user with a config, and with the socket that it is to listen on."""
    folder = Path(tempfile.mkdtemp(prefix="sniproxy-"))
    config = {
        "listeners": [{"address": f"unix:{CONFIG_FOLDER}/sni.sock"}],
        "upstream": {"hosts": wikipedias},
        "policy": {"files": ["policy.yaml"]},
        "workers": 1,
    }
    (folder / "sniproxy.yaml").write_text(yaml.safe_dump(config))
    (folder / "policy.yaml").write_text(yaml.safe_dump(allowing("*.wikipedia.org")))
    os.chown(folder, UID, UID)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def running(command: Sequence[str], volume: Path) -> Iterator[tuple[str, int, int]]:
    """The proxy as a container: the path of its socket, its process and its user. Ends by SIGTERM, with 0."""
    path = str(volume / "sni.sock")
    with (volume / "said.log").open("wb") as said, (volume / "access.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=said)
    try:
        told = volume / "said.log"
        wait_until(lambda: process.poll() is not None or '"listening"' in told.read_text(), "a listening proxy")
        assert process.poll() is None, told.read_text()
        pid, uid = peer_of(path)
        yield path, pid, uid
        os.kill(pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert '"stopped"' in told.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def peer_of(path: str) -> tuple[int, int]:
    """The process and the user that listen on a Unix socket (SO_PEERCRED)."""
    with connected(path) as sock:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid


def test_the_image_says_how_it_is_to_be_run(image: ImageConfig) -> None:
    """A user that is not root, by number; no shell to start it or to look after it; what it is."""
    assert image.told["User"] == f"{UID}:{UID}"
    assert image.command == ["sniproxy", "run", "--config", f"{CONFIG_FOLDER}/sniproxy.yaml"]
    assert image.healthcheck[0] == "python3"
    assert {"9402/tcp", "8443/tcp"} <= image.told["ExposedPorts"].keys()
    assert image.told["Labels"]["org.opencontainers.image.title"] == "sniproxy"


def test_the_chart_runs_the_image_as_it_wants_to_be_run(image: ImageConfig) -> None:
    """The same user and arguments, and a Python for preStop where the image has one."""
    container = every_values_file()["wikipedia-open"].container()
    context = container["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == image.told["User"]
    assert container["args"] == image.told["Cmd"]
    with working_container(IMAGE) as made:
        ask = [container["lifecycle"]["preStop"]["exec"]["command"][0], "-c", "import sys; print(sys.prefix)"]
        assert buildah("run", "--isolation", "chroot", made, "--", *ask) == "/opt/sniproxy"


def test_the_hot_path_is_compiled_and_nothing_else_came_along(image: ImageConfig) -> None:
    """The build's tools stay in the build; the sources of the repository do, too."""
    with working_container(IMAGE) as made, mounted(made) as root:
        packages = next((root / "opt/sniproxy/lib").glob("python3*/site-packages"))
        assert list((packages / "sniproxy/wire").glob("client_hello.*.so"))
        assert not [name for name in ("pip", "mypy", "setuptools", "pytest") if (packages / name).exists()]
        assert not (root / "src").exists()
        assert not (root / "usr/bin/gcc").exists()


def test_a_tls_connection_goes_through_it(image: ImageConfig, volume: Path, authority: Authority) -> None:
    """As its own user; SIGTERM drains, and it ends with 0."""
    with working_container(IMAGE) as made:
        run = buildah_command("run", "--isolation", "chroot", "--volume", f"{volume}:{CONFIG_FOLDER}", made, "--")
        with running([*run, *image.command], volume) as (path, _pid, uid):
            assert uid == UID
            assert fetch(path, DE, authority.client_context()) == page_of(DE)
    assert '"reason":"done"' in (volume / "access.log").read_text()


def test_it_needs_neither_a_shell_nor_a_place_to_write(image: ImageConfig, volume: Path) -> None:
    """Its root is read-only and has no shell; it serves, and its own health check is content."""
    with working_container(IMAGE) as made, mounted(made) as root:
        for shell in ("sh", "bash", "dash"):
            for folder in ("bin", "usr/bin"):
                (root / folder / shell).unlink(missing_ok=True)
        run = in_read_only_root(root, (volume, CONFIG_FOLDER), image.environment)
        with running([*run, *image.command], volume) as (path, pid, uid):
            assert uid == UID
            with connected(path) as sock:
                sock.sendall(hello_for("www.example.com"))
                assert alert_of(sock) == "access_denied"
            inside = beside(pid, root, image.environment)
            assert subprocess.run([*inside, *image.healthcheck], check=False, timeout=PATIENCE).returncode == 0
            assert subprocess.run([*inside, "python3", "-c", WRITE], check=False, timeout=PATIENCE).returncode == EROFS


WRITE = """
try:
    open("/tmp/file", "w")
except OSError as error:
    raise SystemExit(error.errno)
"""


def test_the_build_takes_no_more_than_the_wheel_needs() -> None:
    """.dockerignore lets through what the Dockerfile copies, and nothing else."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == allowed
