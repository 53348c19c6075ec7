"""`sniproxy top`: what the page shows, in a terminal.

It asks the admin address every two seconds and draws what fits the window. What clients and policies wrote is escaped,
so that no name can steer the terminal.
"""

import contextlib
import http.client
import json
import os
import select
import shutil
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from sniproxy.config.units import Address, TcpAddress, UnixAddress
from sniproxy.config.yaml_source import printable

_SECONDS = 2.0
_TIMEOUT = 5.0
_MOST = 5  # of each list of the most frequent

# The alternate screen without a cursor, and back (xterm's control sequences).
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

# q, ^C, ^D, and a keyboard that is gone.
_ENDS = (b"q", b"\x03", b"\x04", b"")

Told = dict[str, Any]


class NoAnswerError(Exception):
    """The admin address does not answer as it should; the message says how."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, as `curl --unix-socket` speaks it."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(address: Address, path: str = "/overview") -> Told:
    """What the admin address tells. Raises NoAnswerError."""
    try:
        with contextlib.closing(_connection(address)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise NoAnswerError(f"{address} answers {answer.status}: is it admin.address of a sniproxy?")
            told: Told = json.loads(body)
            return told
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NoAnswerError(f"no answer from {address}: {what.lower()}") from None


def _connection(address: Address) -> http.client.HTTPConnection:
    if isinstance(address, UnixAddress):
        return UnixConnection(address.path, _TIMEOUT)
    assert isinstance(address, TcpAddress)  # noqa: S101 - there are two kinds
    return http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT)


# Drawing.


def lines_of(told: Told, width: int, height: int) -> list[str]:
    """What is told, on at most `height` lines of at most `width` characters."""
    lines = [*_head(told), "", *_tops(told, width), "", "LATEST REFUSALS"]
    lines += list(_refusals(told))[: max(1, height - len(lines))]
    return [printable(line)[:width].rstrip() for line in lines[:height]]


def _head(told: Told) -> Iterator[str]:
    counts, (opened, refused, failed) = told["counts"], _rates(told["history"]["samples"])
    reload = "good" if counts["config_last_reload_success"] else "FAILED: see the log"
    yield (
        f"sniproxy {told['version']}   generation {told['generation']}   {told['mode']}   "
        f"rules {counts['policy_rules']}   last reload {reload}"
    )
    active, limit = counts["connections_active"], counts["connections_limit"]
    yield f"active {active} of {limit}   workers {_workers(told['workers'])}"
    yield (
        f"opened {counts['connections_opened']} ({opened:.1f}/s)   refused {counts['connections_denied']} "
        f"({refused:.1f}/s)   failed {sum(counts['connections_failed'].values())} ({failed:.1f}/s)"
    )
    cache, bytes_ = counts["dns_cache_requests"], counts["bytes"]
    asked = sum(cache.values())
    from_cache = f"{100 * (asked - cache['miss']) // asked} %" if asked else "nothing asked"
    yield (
        f"bytes from downstream {_amount(bytes_['received'])}, to downstream {_amount(bytes_['sent'])}   "
        f"DNS from the cache: {from_cache}   failed: {_dns_failures(counts['connections_failed'])}"
    )
    troubles = {
        "worker restarts": counts["worker_restarts"],
        "lost": counts["connections_lost"],
        "shed": counts["connections_shed"],
        "log lines dropped": counts["access_log_dropped_lines"],
    }
    if any(troubles.values()):
        yield "   ".join(f"{name} {count}" for name, count in troubles.items() if count)


def _rates(samples: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Opened, refused and failed a second, between the last two samples."""
    if len(samples) < 2:
        return 0.0, 0.0, 0.0
    before, now = samples[-2:]
    seconds = max(now[0] - before[0], 0.1)
    opened, refused, failed = (max(0.0, now[column] - before[column]) / seconds for column in (2, 3, 4))
    return opened, refused, failed


def _workers(workers: Sequence[Told]) -> str:
    stuck = [worker["worker"] for worker in workers if worker["stuck"]]
    idle = [worker["worker"] for worker in workers if not worker["serving"]]
    return f"{len(workers)}" + (f", stuck: {stuck}" if stuck else f", not accepting: {idle}" if idle else "")


def _dns_failures(failed: dict[str, int]) -> int:
    return sum(count for reason, count in failed.items() if reason.startswith("dns_"))


def _amount(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"


def _tops(told: Told, width: int) -> Iterator[str]:
    """Names and principals, what was opened beside what was refused."""
    half = max(20, width // 2 - 1)
    for what in ("Names", "Principals"):
        columns = [
            [f"{verb.upper()} MOST: {what.upper()}", *_column(told["top"][f"{verb}{what}"])]
            for verb in ("opened", "refused")
        ]
        for row in range(max(map(len, columns))):
            left, right = (column[row] if row < len(column) else "" for column in columns)
            yield f"{printable(left)[: half - 1]:<{half}} {right}"


def _column(top: Sequence[Told]) -> Iterator[str]:
    for counted in top[:_MOST]:
        times = f"{counted['times']}+" if counted["error"] else str(counted["times"])
        yield f"{times:>8} {counted['value'] or 'unknown'}"


def _refusals(told: Told) -> Iterator[str]:
    refusals = told["latest"]["refused"]
    if not refusals:
        yield "nothing was refused"
    for entry in refusals:
        at = time.strftime("%H:%M:%S", time.localtime(entry["time"]))
        place = f"  {entry['rule']} of {entry['policy']} {entry['file']}:{entry['line']}" if entry["file"] else ""
        yield f"{at}  {entry['reason']}  {entry['sni'] or 'unknown'}  {entry['principal']}{place}"


# The terminal.


def show_once(address: Address, out: TextIO) -> None:
    """One look, for a pipe. Raises NoAnswerError."""
    out.write("".join(f"{line}\n" for line in lines_of(ask(address), 10_000, 10_000)))


def show_live(address: Address, out: TextIO, is_over: Callable[[float], bool]) -> None:
    """Look again and again, until `is_over`, which waits that many seconds. Raises NoAnswerError if nobody is there."""
    told = ask(address)
    out.write(_ENTER)
    try:
        trouble = ""
        while True:
            size = shutil.get_terminal_size()
            lines = lines_of(told, size.columns, size.lines - 1)
            bottom = printable(trouble)[: size.columns - 1] if trouble else "q ends"
            out.write(
                _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines) + bottom + _CLEAR_LINE + _CLEAR_REST
            )
            out.flush()
            if is_over(_SECONDS):
                return
            try:
                told, trouble = ask(address), ""
            except NoAnswerError as error:
                trouble = f"what is shown is old: {error}"
    finally:
        out.write(_LEAVE)
        out.flush()


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """Keys as they are pressed: whether within so many seconds one of them was q, ^C or ^D."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def is_over(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([descriptor], [], [], left)
            if ready and os.read(descriptor, 1) in _ENDS:
                return True
        return False

    try:
        yield is_over
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
