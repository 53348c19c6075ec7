"""Processes of the benchmark: started on a core of their own, as a user of their own, and stopped by id.

The proxies run without privileges, because privilege changes what is measured: `pipe-user-pages-soft`, for
one, gives an ordinary user 64 pipes of 1 MiB and root as many as it likes. When the benchmark runs as root it
starts them as `nobody` through setpriv(1); when it runs as anybody else, they run as that user.

An interpreter in a private home (a pyenv under root's, say) cannot be reached by `nobody`, and fails in a
nasty way: the kernel runs the executable, and the loader then finds another libpython elsewhere. Such a
program gets one capability, CAP_DAC_READ_SEARCH, which lets it read files and nothing else: it is neither of
the two (CAP_SYS_RESOURCE, CAP_SYS_ADMIN) that lift the pipe limits.
"""

import contextlib
import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.measure import process_tree

UNPRIVILEGED = "nobody"
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Cores:
    """Which core the proxy has to itself, and which one everything else shares."""

    proxy: int
    load: int

    @classmethod
    def of_this_machine(cls) -> "Cores":
        cores = sorted(os.sched_getaffinity(0))
        # The first core is where most machines send their interrupts: the proxy takes the last.
        return cls(proxy=cores[-1], load=cores[0])

    @property
    def apart(self) -> bool:
        return self.proxy != self.load

    @property
    def both(self) -> tuple[int, ...]:
        """For a proxy of several workers, which then share a core with the load."""
        return tuple(sorted({self.proxy, self.load}))


def is_root() -> bool:
    return os.geteuid() == 0


def give_to_unprivileged(directory: Path) -> None:
    """Let the user that the proxies run as write to `directory`."""
    directory.chmod(0o755)
    if is_root():
        user = pwd.getpwnam(UNPRIVILEGED)
        os.chown(directory, user.pw_uid, user.pw_gid)


def reachable_by_all(path: Path) -> bool:
    """Whether any user may traverse every directory above `path`, links followed."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def as_unprivileged(argv: list[str], *, reads: tuple[Path, ...] = ()) -> list[str]:
    """The command that runs `argv` with no privilege but to read the files under `reads` if it must."""
    if not is_root():
        return argv
    user = pwd.getpwnam(UNPRIVILEGED)
    command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    if not all(reachable_by_all(path) for path in reads):
        capability = "-all,+dac_read_search"
        command += [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    return [*command, *argv]


def on_cores(cores: Sequence[int], argv: list[str]) -> list[str]:
    return ["taskset", "--cpu-list", ",".join(map(str, cores)), *argv]


@contextlib.contextmanager
def running(
    argv: list[str],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the block, its output in a file."""
    with output.open("ab") as file:
        process = start(argv, output=file, env=env, cwd=cwd)
    try:
        yield process
    finally:
        stop(process)


def start(
    argv: list[str], *, output: IO[bytes], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; kill it and its children, by their ids, if it does not."""
    if process.poll() is not None:
        return
    tree = process_tree(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
