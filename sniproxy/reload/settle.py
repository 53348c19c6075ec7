"""What a running proxy can take from a new config, and what has to wait for a restart.

Sockets are opened and workers are counted when the proxy starts. A new config that wants others is taken all the same:
these keys keep their old values, each is named, and all the rest is in force.
"""

from collections.abc import Iterator
from dataclasses import replace

from sniproxy.config.model import Config, Listener


def settle(running: Config, wanted: Config) -> tuple[Config, tuple[str, ...]]:
    """The config to go on with, and a sentence for each key that needs a restart."""
    listeners, told = _matched(running.listeners, wanted.listeners)
    admin = replace(wanted.admin, address=running.admin.address, metrics_address=running.admin.metrics_address)
    settled = replace(wanted, listeners=listeners, admin=admin, workers=running.workers)
    return settled, (*told, *_others(running, wanted))


def _matched(running: tuple[Listener, ...], wanted: tuple[Listener, ...]) -> tuple[tuple[Listener, ...], list[str]]:
    """Each listener that runs, as the new config has the one with its address."""
    told = []
    left = list(wanted)
    matched = []
    for listener in running:
        new = next((one for one in left if one.address == listener.address), None)
        if new is None:
            told.append(f"listeners: {listener.address} is gone, and goes on as it was until the restart")
            matched.append(listener)
        else:
            left.remove(new)
            matched.append(new)
    told += [f"listeners: {listener.address} is new, and listens after the restart" for listener in left]
    return tuple(matched), told


def _others(running: Config, wanted: Config) -> Iterator[str]:
    for key, before, after in (
        ("admin.address", running.admin.address, wanted.admin.address),
        ("admin.metrics_address", running.admin.metrics_address, wanted.admin.metrics_address),
        ("workers", running.workers, wanted.workers),
    ):
        if before != after:
            yield f"{key}: {after or 'none'} takes the place of {before or 'none'} after the restart"
