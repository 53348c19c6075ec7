"""The admin process: two doors, of which one is for people on this machine and the other for scrapers and probes.

Both only tell, and what is answered may not be framed, sniffed or kept. Who asks at the first under a name that is not
an address or localhost gets nothing, so that no web page can read it by rebinding a name of its own; scrapers come to
the other by whatever name it has where they are.
"""

import asyncio
import ipaddress
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from sniproxy.config.units import parse_name
from sniproxy.net.clock import BEAT
from sniproxy.observe.admin import answers
from sniproxy.observe.admin.exposition import Exposition
from sniproxy.observe.admin.history import History
from sniproxy.observe.admin.http_server import Handler, HttpServer, Request, Response, routed
from sniproxy.observe.admin.in_force import BusyError, InForce
from sniproxy.observe.admin.page import Page
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.policy.model import Request as Asked
from sniproxy.processes import heed_no_more
from sniproxy.queries import parse_identity, parse_source_ip
from sniproxy.reload.channel import Inbox
from sniproxy.reload.generation import Generation

# By how much a busy worker may miss a beat.
_LATE_SECONDS = 0.015

_EXPLAIN_KEYS = {"sni", "principal", "source_ip", "outer_sni", "ech"}


@dataclass(frozen=True, slots=True)
class AdminTask:
    """Everything that the admin process inherits from the supervisor."""

    board: Scoreboard
    sockets: Sequence[socket.socket]  # of admin.address
    metrics_sockets: Sequence[socket.socket]  # of admin.metrics_address
    generation: Generation
    inbox: Inbox  # where the next ones come from
    lifeline: int


def run_admin(task: AdminTask) -> None:
    """Serve until told to stop. To be called in a process of its own."""
    asyncio.run(_serve(task))


async def _serve(task: AdminTask) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(task.lifeline, stop.set)
    in_force = InForce(task.generation, task.inbox)
    in_force.watch(loop)
    history = History(task.board)
    sampling = asyncio.create_task(history.keep())
    doors = (
        (new_app(task.board, in_force, history), task.sockets),
        (new_metrics_app(task.board), task.metrics_sockets),
    )
    servers = []
    for answer, sockets in doors:
        servers.append(server := HttpServer(answer, SECURITY_HEADERS))
        for sock in sockets:
            await server.start(sock)
    await stop.wait()
    loop.remove_reader(task.lifeline)
    sampling.cancel()
    for server in servers:
        await server.stop()
    heed_no_more()


def new_metrics_app(board: Scoreboard) -> Handler:
    """What scrapers and probes need, and no more."""
    return routed(_metrics_routes(board))


def new_app(board: Scoreboard, in_force: InForce, history: History) -> Handler:
    """All of it: what the scrapers get, the answers in JSON, and the page."""
    page = Page()

    async def show_page(_request: Request) -> Response:
        return Response(page.html, content_type=page.content_type, headers=page.headers)

    async def connections(_request: Request) -> object:
        await _counts_of_now()
        return answers.connections(board)

    async def policy(_request: Request) -> object:
        await _counts_of_now()
        return await answers.policy(board, in_force)

    async def config(_request: Request) -> object:
        return answers.plain(in_force.generation.config)

    async def overview(_request: Request) -> object:
        await _counts_of_now()
        return answers.overview(board, in_force, history)

    async def explain(request: Request) -> object:
        try:
            return await in_force.explain(_asked(request))
        except BusyError:
            raise _Refused("too many ask at once; ask again", HTTPStatus.SERVICE_UNAVAILABLE) from None

    routes = {
        **_metrics_routes(board),
        "/": show_page,
        "/connections": _as_json(connections),
        "/policy": _as_json(policy),
        "/config": _as_json(config),
        "/overview": _as_json(overview),
        "/explain": _as_json(explain),
    }
    return _guarded(routed(routes))


def _metrics_routes(board: Scoreboard) -> dict[str, Handler]:
    exposition = Exposition(board)

    async def metrics(request: Request) -> Response:
        await _counts_of_now()
        body, content_type = exposition.answer(request.header("accept"))
        return Response(body, content_type=content_type)

    async def healthz(_request: Request) -> Response:
        return _health("no worker is stuck", "stuck workers", answers.stuck_workers(board))

    async def readyz(_request: Request) -> Response:
        return _health(
            "every worker accepts connections", "workers that accept no connections", answers.idle_workers(board)
        )

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


async def _counts_of_now() -> None:
    """Wait until the workers have told of all that happened before: an answer has what whoever asks has seen."""
    await asyncio.sleep(BEAT + _LATE_SECONDS)


class _Refused(Exception):  # noqa: N818 - an answer
    """A question that gets no answer, and why."""

    def __init__(self, why: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(why)
        self.status = status


def _as_json(answer: Callable[[Request], Awaitable[object]]) -> Handler:
    async def handle(request: Request) -> Response:
        status = HTTPStatus.OK
        try:
            said = await answer(request)
        except _Refused as refused:
            said, status = {"error": str(refused)}, refused.status
        body = orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return Response(body, status, "application/json")

    return handle


def _asked(request: Request) -> Asked:
    """The connection that a question is about. Raises _Refused."""
    given = dict(request.query)
    for key, times in Counter(key for key, _ in request.query).items():
        if key not in _EXPLAIN_KEYS:
            raise _Refused(f"{key[:60]!r} is unknown; the keys are {', '.join(sorted(_EXPLAIN_KEYS))}")
        if times > 1:
            raise _Refused(f"{key} is given twice; give it once")
    if not given.get("sni"):
        raise _Refused("sni is missing; write /explain?sni=en.wikipedia.org")
    if given.get("ech", "") not in ("", "true", "false"):
        raise _Refused("ech must be true or false")
    try:
        return Asked(
            parse_name(given["sni"]),
            parse_identity(given.get("principal")),
            parse_source_ip(given.get("source_ip")),
            given.get("ech") == "true",
            given.get("outer_sni", ""),
        )
    except ValueError as error:
        raise _Refused(str(error)) from None


def _health(good: str, bad: str, workers: list[int]) -> Response:
    if workers:
        return Response(f"{bad}: {workers}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)
    return Response(f"{good}\n".encode())


# What all answers have; the page has a policy of its own.
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _guarded(answer: Handler) -> Handler:
    """Answers to addresses and to localhost only."""

    async def guard(request: Request) -> Response:
        if not _is_own_host(request.host):
            why = b"the Host header must be an IP address or localhost\n"
            return Response(why, HTTPStatus.MISDIRECTED_REQUEST)
        return await answer(request)

    return guard


def _is_own_host(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
