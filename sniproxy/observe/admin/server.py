"""The admin process: two doors, of which one is for people on this machine and the other for scrapers and probes.

Both only tell. Who asks under a name that is not an address or localhost gets nothing, so that no web page can read
this by rebinding a name of its own; and what is answered may not be framed, sniffed or kept.
"""

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from sniproxy.config.units import parse_name
from sniproxy.observe.admin import answers
from sniproxy.observe.admin.exposition import Exposition
from sniproxy.observe.admin.history import History
from sniproxy.observe.admin.in_force import BusyError, InForce
from sniproxy.observe.admin.page import Page
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.policy.model import Request
from sniproxy.processes import heed_no_more
from sniproxy.queries import parse_identity, parse_source_ip
from sniproxy.reload.channel import Inbox
from sniproxy.reload.generation import Generation

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
    apps = ((new_app(task.board, in_force, history), task.sockets), (new_metrics_app(task.board), task.metrics_sockets))
    runners = []
    for app, sockets in apps:
        runners.append(runner := web.AppRunner(app, access_log=None))
        await runner.setup()
        for sock in sockets:
            await web.SockSite(runner, sock).start()
    await stop.wait()
    loop.remove_reader(task.lifeline)
    sampling.cancel()
    for runner in runners:
        await runner.cleanup()
    heed_no_more()


def new_metrics_app(board: Scoreboard) -> web.Application:
    """What scrapers and probes need, and no more."""
    exposition = Exposition(board)

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = exposition.answer(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    async def healthz(_request: web.Request) -> web.Response:
        return _health("no worker is stuck", "stuck workers", answers.stuck_workers(board))

    async def readyz(_request: web.Request) -> web.Response:
        return _health(
            "every worker accepts connections", "workers that accept no connections", answers.idle_workers(board)
        )

    app = web.Application(middlewares=[_guard])
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def new_app(board: Scoreboard, in_force: InForce, history: History) -> web.Application:
    """All of it: what the scrapers get, the answers in JSON, and the page."""
    page = Page()

    async def show_page(_request: web.Request) -> web.Response:
        return web.Response(body=page.html, headers={hdrs.CONTENT_TYPE: page.content_type, **page.headers})

    async def connections(_request: web.Request) -> object:
        return answers.connections(board)

    async def policy(_request: web.Request) -> object:
        return await answers.policy(board, in_force)

    async def config(_request: web.Request) -> object:
        return answers.plain(in_force.generation.config)

    async def overview(_request: web.Request) -> object:
        return answers.overview(board, in_force, history)

    async def explain(request: web.Request) -> object:
        try:
            return await in_force.explain(_asked(request))
        except BusyError:
            raise _Refused("too many ask at once; ask again", 503) from None

    app = new_metrics_app(board)
    app.router.add_get("/", show_page)
    for path, answer in (
        ("/connections", connections),
        ("/policy", policy),
        ("/config", config),
        ("/overview", overview),
        ("/explain", explain),
    ):
        app.router.add_get(path, _as_json(answer))
    return app


class _Refused(Exception):  # noqa: N818 - an answer
    """A question that gets no answer, and why."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


def _as_json(answer: Callable[[web.Request], Awaitable[object]]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        status = 200
        try:
            said = await answer(request)
        except _Refused as refused:
            said, status = {"error": str(refused)}, refused.status
        body = orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return web.Response(body=body, status=status, content_type="application/json")

    return handle


def _asked(request: web.Request) -> Request:
    """The connection that a question is about. Raises _Refused."""
    given = request.query
    for key in given:
        if key not in _EXPLAIN_KEYS:
            raise _Refused(f"{key[:60]!r} is unknown; the keys are {', '.join(sorted(_EXPLAIN_KEYS))}")
        if len(given.getall(key)) > 1:
            raise _Refused(f"{key} is given twice; give it once")
    if not given.get("sni"):
        raise _Refused("sni is missing; write /explain?sni=en.wikipedia.org")
    if given.get("ech", "") not in ("", "true", "false"):
        raise _Refused("ech must be true or false")
    try:
        return Request(
            parse_name(given["sni"]),
            parse_identity(given.get("principal")),
            parse_source_ip(given.get("source_ip")),
            given.get("ech") == "true",
            given.get("outer_sni", ""),
        )
    except ValueError as error:
        raise _Refused(str(error)) from None


def _health(good: str, bad: str, workers: list[int]) -> web.Response:
    return web.Response(text=f"{bad}: {workers}\n" if workers else f"{good}\n", status=503 if workers else 200)


_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer to addresses and to localhost only, with the headers that all answers have."""
    # Not request.host, which asks the DNS for a name of ours where the header is absent.
    if not _is_own_host(request.headers.get(hdrs.HOST, "")):
        return web.Response(text="the Host header must be an IP address or localhost\n", status=421)
    response = await handler(request)
    for name, value in _SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _is_own_host(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
