"""The vital signs of processes, read from /proc: descriptors by kind, memory, CPU time.

Memory is what a process has for itself (RssAnon, proc_pid_status(5)): the scoreboard, which all of the proxy's
processes share, has a size that never changes.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Vitals:
    """Descriptors by kind, and bytes of memory, of some processes together."""

    sockets: int
    pipes: int
    others: int
    memory: int

    @property
    def descriptors(self) -> int:
        return self.sockets + self.pipes + self.others


def vitals_of(pids: Iterable[int]) -> Vitals:
    kinds: Counter[str] = Counter()
    memory = 0
    for pid in pids:
        kinds.update(target.partition(":")[0] for target in _descriptors(pid))
        memory += _status(pid, "RssAnon")
    sockets, pipes = kinds["socket"], kinds["pipe"]
    return Vitals(sockets, pipes, kinds.total() - sockets - pipes, memory)


def _descriptors(pid: int) -> Iterator[str]:
    """What each descriptor is; "socket:[1234]" has the inode."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(link.readlink())


def _status(pid: int, field: str) -> int:
    """An amount of memory in bytes, from proc_pid_status(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, status
    return int(match[1]) * 1024


def forget_peak(pids: Iterable[int]) -> None:
    """Let `peak_memory` begin anew, where the kernel lets us (proc_pid_clear_refs(5))."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(pids: Iterable[int]) -> int:
    """The bytes that the processes have had in memory at most, each at its own time."""
    return sum(_status(pid, "VmHWM") for pid in pids)


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share_of_cpu(pids: Iterable[int], seconds: float) -> float:
    """The CPU time that processes use in some time, as a share of what a loop that spins gets meanwhile.

    However busy the machine is, one of them that spins comes to about 1.
    """
    watched = list(pids)
    used, spun = sum(map(cpu_seconds, watched)), time.thread_time()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return (sum(map(cpu_seconds, watched)) - used) / (time.thread_time() - spun)
