"""A resolver with everything that it talks to: a name server that follows a script, a clock, and an observer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from sniproxy.config.model import ResolverConfig
from sniproxy.config.units import parse_endpoint
from sniproxy.names import ServerName
from sniproxy.net.resolver import ResolutionError, Resolver, ResolverObserver
from tests.support.dns_server import Asked, Script, ScriptedServer, scripted_server

NAME = ServerName("www.test")
OTHER = ServerName("other.test")
IPV4 = "192.0.2.1"
IPV6 = "2001:db8::1"

# Long enough to be never reached on a busy machine, unless a test is about silence.
PATIENT = 60.0
IMPATIENT = 0.4


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Observed(ResolverObserver):
    """A resolver's observer that writes down what it is told."""

    events: list[str] = field(default_factory=list)

    def hit(self) -> None:
        self.events.append("hit")

    def miss(self) -> None:
        self.events.append("miss")

    def stale(self) -> None:
        self.events.append("stale")

    def lookup(self, seconds: float, result: str) -> None:
        self.events.append(f"lookup {result} in {seconds:g} s")


@dataclass
class Resolving:
    """A resolver, the server it asks, its clock and its observer."""

    server: ScriptedServer
    resolver: Resolver
    clock: Clock
    observed: Observed

    async def addresses(self, name: ServerName = NAME) -> tuple[str, ...]:
        return (await self.resolver.resolve(name)).addresses

    def in_memory(self) -> tuple[str, ...]:
        answer = self.resolver.cached(NAME)
        return answer.addresses if answer else ()

    async def failure(self, name: ServerName = NAME) -> ResolutionError:
        with pytest.raises(ResolutionError) as caught:
            await self.resolver.resolve(name)
        return caught.value


@asynccontextmanager
async def resolving(
    script: Script, *others: str, sockets: int | None = None, **settings: Any
) -> AsyncIterator[Resolving]:
    """Everything for one test; `others` are name servers to ask first, `settings` differ from the defaults."""
    async with scripted_server(script) as server:
        clock, observed = Clock(), Observed()
        chosen: dict[str, Any] = {"timeout": PATIENT, "family": "ipv4"} | settings
        nameservers = tuple(map(parse_endpoint, (*others, server.address)))
        resolver = Resolver(ResolverConfig(nameservers=nameservers, **chosen), observed, clock, sockets)
        try:
            yield Resolving(server, resolver, clock, observed)
        finally:
            await resolver.close()


async def both_families(asked: Asked) -> list[bytes]:
    """A name with one address of either family, for a minute."""
    address = IPV6 if asked.rdtype == "AAAA" else IPV4
    return [asked.reply(f"{asked.name}. 60 {asked.rdtype} {address}")]
