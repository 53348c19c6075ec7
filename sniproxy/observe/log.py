"""The operational log: what the program itself does, one event a fact, on standard error.

JSON where something collects it, text for a person at a terminal. Connections have their own log.

Nobody waits for its reader, and nobody dies of its end: what standard error does not take now is lost.
"""

import os
import select
import sys

import structlog


class Stream:
    """A descriptor as a file for structlog. Never waits, never raises."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._is_broken = False  # the reader has the beginning of a line whose end was lost

    def write(self, text: str) -> int:
        data = (b"\n" if self._is_broken else b"") + text.encode(errors="backslashreplace")
        written = 0
        while written < len(data) and (taken := self._write_some(data[written : written + select.PIPE_BUF])):
            written += taken
        if written:
            self._is_broken = data[written - 1 : written] != b"\n"
        return len(text)

    def _write_some(self, data: bytes) -> int:
        """How many bytes are written: 0 where that would mean to wait, or cannot be."""
        try:
            # A pipe that is writable takes PIPE_BUF bytes at once (pipe(7)).
            return os.write(self._fd, data) if self._poll.poll(0) else 0
        except OSError:
            return 0

    def flush(self) -> None:
        """Nothing is kept."""


def configure(*, to_terminal: bool | None = None) -> None:
    """Set structlog up for this process and the ones it forks."""
    pretty = sys.stderr.isatty() if to_terminal is None else to_terminal
    renderer: structlog.typing.Processor
    renderer = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if pretty else [structlog.processors.format_exc_info]),
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=Stream(2)),  # type: ignore[arg-type] # it only writes and flushes
        cache_logger_on_first_use=False,
    )
