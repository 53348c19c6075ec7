"""What a process tree costs: CPU time and memory, as the kernel counts them.

CPU time is user + kernel time of the process, its descendants, and the descendants that have already ended.
A live process is read from its CPU clock (clock_getcpuclockid(3)), which counts nanoseconds and includes
threads that have ended; /proc/PID/stat would give hundredths of a second. Children that ended and were waited
for are only in /proc/PID/stat, which is fine: no proxy ends one on its hot path.

What the kernel puts off counts too. A packet that is sent over loopback is received in the sender's own time,
until there are too many at once; then the core's ksoftirqd thread takes over, and no process is charged. A
proxy that splices causes a quarter of its work there, and would look cheaper than it is. The proxy's core
belongs to the proxy, so what ksoftirqd does on it during a measured block is the proxy's work.

Memory is PSS of the tree: a page shared by n processes counts 1/n in each, so that a master and a worker that
share a library are not charged for it twice. Memory of the kernel (socket buffers, pipes) is in nobody's PSS.

That the sender pays for a loopback packet is the same rule for every proxy, and a reason not to compare these
figures with those of a network card.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2  # <linux/posix-timers.h>: the clock that sums the scheduler's own run times

QUIET_SHARE = 0.01  # of a core: less than this is housekeeping
QUIET_WINDOW = 0.2
QUIET_DEADLINE = 5.0


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that this module uses; times are seconds."""

    parent: int
    user: float
    system: float
    ended_children: float


@dataclass(frozen=True)
class Cpu:
    """CPU seconds. `total` is exact; `user` and `system` are to the hundredth."""

    total: float
    user: float
    system: float

    def __sub__(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.total - earlier.total, self.user - earlier.user, self.system - earlier.system)


def parse_stat(text: str) -> Stat:
    """Read proc_pid_stat(5). The command may hold spaces and brackets: count from the last bracket."""
    fields = text.rpartition(")")[2].split()
    user, system, ended_user, ended_system = (int(field) / _TICKS for field in fields[11:15])
    return Stat(int(fields[1]), user, system, ended_user + ended_system)


def _stat(pid: int) -> Stat | None:
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def process_tree(root: int) -> list[int]:
    """The process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            children.setdefault(stat.parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def _clock(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def cpu(root: int) -> Cpu:
    """What the tree has used since it started."""
    total = user = system = 0.0
    for pid in process_tree(root):
        stat = _stat(pid)
        if stat is None:
            continue
        with contextlib.suppress(OSError):  # it ended between the two reads: its parent's stat has it now
            total += _clock(pid) + stat.ended_children
            user += stat.user
            system += stat.system
    return Cpu(total, user, system)


def settle(root: int) -> None:
    """Wait until the tree has nothing left to do (a buffered log to write, a timer to run out)."""
    deadline = time.monotonic() + QUIET_DEADLINE
    before = cpu(root).total
    while time.monotonic() < deadline:
        time.sleep(QUIET_WINDOW)
        now = cpu(root).total
        if now - before < QUIET_SHARE * QUIET_WINDOW:
            return
        before = now


def parse_pss(rollup: str) -> int:
    """The `Pss:` line of /proc/PID/smaps_rollup, in bytes."""
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Pss line")


def pss(root: int) -> int:
    """Proportional set size of the tree, in bytes."""
    total = 0
    for pid in process_tree(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += parse_pss((_PROC / str(pid) / "smaps_rollup").read_text())
    return total


def parse_core_idle(text: str, core: int) -> float:
    """Seconds that `core` has been idle, from /proc/stat.

    Idle time is the one that the kernel clocks; the busy kinds beside it are sampled at the timer's tick, which
    work that is paced by a timer of its own meets too often or never.
    """
    for line in text.splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            return (int(fields[3]) + int(fields[4])) / _TICKS  # idle, iowait
    raise ValueError(f"no core {core}")


@dataclass
class Usage:
    """What a block of work cost; filled in when the block ends. `deferred` is ksoftirqd's part, in seconds."""

    cpu: Cpu = Cpu(0, 0, 0)
    deferred: float = 0.0
    load_core_busy: float = 0.0
    proxy_core_busy: float = 0.0
    foreign_share: float = 0.0

    @property
    def seconds(self) -> float:
        """All the CPU time that the work took on the proxy's side."""
        return self.cpu.total + self.deferred

    @classmethod
    def joined(cls, parts: Sequence["Usage"]) -> "Usage":
        """Of a block that was worked off in slices of one length: times are summed, and of shares it is the mean."""
        return cls(
            Cpu(
                sum(part.cpu.total for part in parts),
                sum(part.cpu.user for part in parts),
                sum(part.cpu.system for part in parts),
            ),
            sum(part.deferred for part in parts),
            fmean(part.load_core_busy for part in parts),
            fmean(part.proxy_core_busy for part in parts),
            fmean(part.foreign_share for part in parts),
        )


@contextlib.contextmanager
def metered(root: int, *, proxy_cores: Sequence[int], load_core: int) -> Iterator[Usage]:
    """Meter the tree and the cores over a block of work.

    The shares are of the time that the block took. What is foreign on the proxy's cores is all that is not its own;
    where the load's core is among them, all that is not of some process that this one has started. The tree's CPU is
    read again once it has settled, so that work that the proxy puts off (a log written once a second) is charged to
    the connections that caused it.
    """
    usage = Usage()
    settle(root)
    softirq = _ksoftirqd(proxy_cores)
    owner = os.getpid() if load_core in proxy_cores and len(proxy_cores) > 1 else root
    owner_before = cpu(owner).total
    started, cpu_before, deferred_before = time.monotonic(), cpu(root), _deferred(softirq)
    proxy_idle, load_idle = _idle(proxy_cores), _idle([load_core])
    yield usage
    seconds = time.monotonic() - started
    usage.deferred = _deferred(softirq) - deferred_before
    own = cpu(owner).total - owner_before + usage.deferred
    usage.load_core_busy = _share(seconds - (_idle([load_core]) - load_idle), seconds)
    usage.proxy_core_busy = _share(seconds - (_idle(proxy_cores) - proxy_idle), seconds)
    # Of a short block it may be less than nothing: how busy a core is, is known to the hundredth of a second.
    usage.foreign_share = usage.proxy_core_busy - own / seconds / len(proxy_cores)
    settle(root)
    usage.cpu = cpu(root) - cpu_before


def _ksoftirqd(cores: Sequence[int]) -> list[int]:
    """The threads that do the cores' deferred packet work; none where a container cannot see them."""
    names = {f"ksoftirqd/{core}" for core in cores}
    found = []
    for entry in _PROC.iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().strip() in names:
                found.append(int(entry.name))
    return found


def _deferred(ksoftirqd: Iterable[int]) -> float:
    return sum(map(_clock, ksoftirqd), 0.0)


def _idle(cores: Sequence[int]) -> float:
    """On average of the cores."""
    text = (_PROC / "stat").read_text()
    return sum(parse_core_idle(text, core) for core in cores) / len(cores)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
