"""The operational log: what the program itself does, one event a fact, on standard error.

JSON where something collects it, text for a person at a terminal. Connections have their own log.
"""

import sys

import structlog


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
