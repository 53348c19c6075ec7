"""The admin address: metrics for a scraper and health for a probe, read from the scoreboard. It changes nothing.

Runs in a process of its own, so that a slow scrape costs no connection anything, and so that aiohttp and
prometheus_client are loaded once and not in every worker.
"""

import asyncio
import ipaddress
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from sniproxy.observe.metrics import (
    DENIED,
    DENIED_LABELS,
    HEARTBEAT,
    SERVING,
    Kind,
    Sample,
    denied_totals,
    read_samples,
    slot_of,
)
from sniproxy.observe.scoreboard import Scoreboard

# A worker says that it lives once a second. One that has been silent this long is stuck.
_STUCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class AdminTask:
    """Everything that the admin process inherits from the supervisor."""

    board: Scoreboard
    sockets: Sequence[socket.socket]
    lifeline: int


def run_admin(task: AdminTask) -> None:
    """Serve until told to stop. To be called in a process of its own."""
    asyncio.run(_serve(task))


async def _serve(task: AdminTask) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(task.lifeline, stop.set)
    runner = web.AppRunner(new_app(task.board), access_log=None)
    await runner.setup()
    for sock in task.sockets:
        await web.SockSite(runner, sock).start()
    await stop.wait()
    loop.remove_reader(task.lifeline)
    await runner.cleanup()


def new_app(board: Scoreboard) -> web.Application:
    """The routes over one scoreboard."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ScoreboardCollector(board))

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        return _answer("no worker is stuck", _stuck_workers(board))

    async def readyz(_request: web.Request) -> web.Response:
        return _answer("every worker accepts connections", _idle_workers(board))

    app = web.Application(middlewares=[_check_host])
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def _answer(good: str, bad: str) -> web.Response:
    return web.Response(text=f"{bad or good}\n", status=503 if bad else 200)


def _stuck_workers(board: Scoreboard) -> str:
    now, slot = time.monotonic(), slot_of(HEARTBEAT)
    stuck = [n for n, row in enumerate(board.workers) if row.slots[slot] and now - row.slots[slot] > _STUCK_SECONDS]
    return f"stuck workers: {stuck}" if stuck else ""


def _idle_workers(board: Scoreboard) -> str:
    slot = slot_of(SERVING)
    idle = [n for n, row in enumerate(board.workers) if not row.slots[slot]]
    return f"workers that accept no connections: {idle}" if idle else ""


@web.middleware
async def _check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer to addresses and to localhost only, so that no web page can read this by rebinding a name of its own."""
    # Not request.host, which asks the DNS for a name of ours where the header is absent.
    if not _is_own_host(request.headers.get(hdrs.HOST, "")):
        return web.Response(text="the Host header must be an IP address or localhost\n", status=421)
    return await handler(request)


def _is_own_host(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class _ScoreboardCollector(Collector):
    """Presents the sums over all workers to prometheus_client."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board

    def collect(self) -> Iterator[MetricFamily]:
        for sample in read_samples(self._board):
            yield _family(sample)
        denied = CounterMetricFamily(DENIED.name, DENIED.help, labels=DENIED_LABELS)
        for labels, count in denied_totals(self._board):
            denied.add_metric(labels, count)
        yield denied
        yield InfoMetricFamily("sniproxy_build", "What is running.", {"version": version("sniproxy")})


def _family(sample: Sample) -> MetricFamily:
    metric = sample.metric
    labels = [metric.label] if metric.label else []
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help)
        histogram.add_metric([], _cumulative(sample), sample.total)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind is Kind.COUNTER:
        family = CounterMetricFamily(metric.name, metric.help, labels=labels)
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=labels)
    for values, count in sample.series:
        family.add_metric(values, count)
    return family


def _cumulative(sample: Sample) -> list[tuple[str, float]]:
    """Prometheus's buckets count everything up to their bound."""
    bounds = [*map(str, sample.metric.buckets), "+Inf"]
    running, buckets = 0.0, []
    for bound, count in zip(bounds, sample.bucket_counts, strict=True):
        running += count
        buckets.append((bound, running))
    return buckets
