"""The image, built by buildah without a daemon, on a base that debootstrap makes: no image is fetched from anywhere.

What takes long is kept below build/image: the base, and the layers, so that only what has changed is built again.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import ROOT

FOLDER = ROOT / "build" / "image"
BASE, IMAGE = "localhost/sniproxy-base", "localhost/sniproxy-test"
BUILD_SECONDS = 1800


def need_builder() -> None:
    """Skips the test, or with CI=true fails it, where no image can be built."""
    missing = [name for name in ("buildah", "debootstrap", "unshare") if not _has(name)]
    reason = f"{', '.join(missing)} not installed (Debian packages of these names)" if missing else ""
    if os.getuid() != 0:
        reason = "only root can make a base image"
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def _has(program: str) -> bool:
    return any(os.access(Path(folder) / program, os.X_OK) for folder in (*os.environ["PATH"].split(":"), "/usr/sbin"))


def buildah(*arguments: str, timeout: float = 120) -> str:
    """What buildah answers, with a storage of its own."""
    done = subprocess.run(buildah_command(*arguments), capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


def buildah_command(*arguments: str) -> list[str]:
    places = ["--root", str(FOLDER / "storage"), "--runroot", str(FOLDER / "run")]
    return ["buildah", *places, "--storage-driver", "overlay", *arguments]


def build_image() -> None:
    """Build the Dockerfile as it is, with the hot path compiled."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    _make_base()
    pip = FOLDER / "pip.conf"  # the machine's certificates, and its word which of them pip should trust
    pip.write_text(f"[global]\ncert = {os.environ['PIP_CERT']}\n" if "PIP_CERT" in os.environ else "")
    mounts = [f"--volume={one}:ro" for one in ("/etc/ssl/certs:/etc/ssl/certs", f"{pip}:/etc/pip.conf")]
    how = ["--isolation", "chroot", "--format", "docker", "--layers", "--build-arg", f"BASE={BASE}", *mounts]
    buildah("bud", *how, "--tag", IMAGE, str(ROOT), timeout=BUILD_SECONDS)


def _make_base() -> None:
    """The suite of this machine, with Python, as an image."""
    if BASE in buildah("images", "--format", "{{.Name}}").splitlines():
        return
    root = FOLDER / "base"
    if not (root / "usr/bin/python3").exists():
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        packages = "python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", release["VERSION_CODENAME"], str(root)]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS, env=environment)
    with working_container("scratch") as container:
        buildah("add", "--quiet", container, str(root), "/")
        buildah("commit", "--quiet", container, BASE)


@contextlib.contextmanager
def working_container(image: str) -> Iterator[str]:
    container = buildah("from", image)
    try:
        yield container
    finally:
        buildah("rm", container)


@contextlib.contextmanager
def mounted(container: str) -> Iterator[Path]:
    """The root of a container, as a folder."""
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("umount", container)


@dataclass(frozen=True)
class ImageConfig:
    """What the image says of how it is to be run."""

    told: dict[str, Any]

    @classmethod
    def read(cls) -> "ImageConfig":
        return cls(json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"])

    @property
    def command(self) -> list[str]:
        command: list[str] = [*self.told["Entrypoint"], *self.told["Cmd"]]
        return command

    @property
    def environment(self) -> dict[str, str]:
        return dict(one.split("=", 1) for one in self.told["Env"])

    @property
    def healthcheck(self) -> list[str]:
        told: list[str] = self.told["Healthcheck"]["Test"]
        assert told[0] == "CMD", "a shell is not to be needed"
        return told[1:]


def in_read_only_root(root: Path, volume: tuple[Path, str], environment: Mapping[str, str]) -> list[str]:
    """A command that runs its arguments as 10001 in `root`, read-only but for `volume`, with a network of its own."""
    inside = root / volume[1].lstrip("/")
    inside.mkdir(parents=True, exist_ok=True)
    steps = [
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount --bind {volume[0]} {inside}",
        f"mount -o remount,bind,ro {root}",
        "ip link set lo up",
        'exec "$@"',
    ]
    isolated = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-ec", "\n".join(steps), "sh"]
    return [*isolated, *in_root(root, environment)]


def beside(pid: int, root: Path, environment: Mapping[str, str]) -> list[str]:
    """A command that runs its arguments where `in_read_only_root` has put the process `pid`."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", *in_root(root, environment)]


def in_root(root: Path, environment: Mapping[str, str]) -> list[str]:
    chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "chroot"
    settings = [f"{key}={value}" for key, value in environment.items()]
    return ["env", "-i", *settings, chroot, "--userspec=10001:10001", str(root)]
