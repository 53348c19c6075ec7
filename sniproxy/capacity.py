"""What this machine, or this container, has room for: how many workers, and how many connections."""

import os
import resource

import structlog

from sniproxy.config.model import Config
from sniproxy.net.nameservers import question_sockets

_log = structlog.get_logger()

# A connection is two sockets. Beside them a worker has its listeners, its logs, and the pipes; and those for DNS.
_DESCRIPTORS_PER_CONNECTION = 2
_SPARE_DESCRIPTORS = 256


def worker_count(config: Config) -> int:
    """`workers`, or for auto: min(CPU affinity, ceil(cgroup cpu.max))."""
    if config.workers != "auto":
        return config.workers
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _cgroup_cpus() or allowed))


def _cgroup_cpus() -> int | None:
    """The CPU quota of this cgroup (cgroup v2, cpu.max: "quota period" in microseconds), rounded up."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            path = next(line.strip()[3:] for line in file if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{path}/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, StopIteration, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def connection_limit(config: Config, workers: int) -> int:
    """limits.connections, or as many as there are descriptors for, with a warning."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return config.limits.connections
    for_connections = hard - _SPARE_DESCRIPTORS - question_sockets(hard)
    possible = max(1, for_connections // _DESCRIPTORS_PER_CONNECTION) * workers
    if config.limits.connections > possible:
        _log.warning(
            "limits.connections is more than there are descriptors for",
            configured=config.limits.connections,
            used=possible,
            descriptors=hard,
            mend="raise ulimit -n, or lower limits.connections",
        )
    return min(config.limits.connections, possible)
