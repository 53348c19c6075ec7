"""What is in force: the newest generation, and answers about it."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from sniproxy.config.model import Config, Upstream
from sniproxy.identity.spiffe import UNKNOWN
from sniproxy.names import ServerName
from sniproxy.observe.admin.in_force import BusyError, InForce
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Action, Attribute, Condition, Ground, Request, Rule, Rulebook
from sniproxy.reload.channel import Outbox, Parcel, new_channel
from sniproxy.reload.generation import Generation
from tests.net.loopback import open_descriptors, turns, until
from tests.reload.readings import generation, new_policy

ASKED = Request(ServerName("en.wikipedia.org"), UNKNOWN, "")


def allowing(name: str, port: str = "443") -> Rulebook:
    clause = (Condition(Attribute.SNI, (name,)), Condition(Attribute.PORT, (port,)))
    return Rulebook((Rule(Ground("p.yaml", "some", "p.yaml", 2), Action.ALLOW, (clause,)),))


@pytest.fixture
def channel() -> Iterator[Outbox]:
    outbox, inbox = new_channel()
    outbox.inbox = inbox  # type: ignore[attr-defined] # kept open as long as the other end
    yield outbox
    outbox.close()
    inbox.close()


def in_force(book: Rulebook, channel: Outbox, config: Config | None = None) -> InForce:
    inbox = channel.inbox  # type: ignore[attr-defined]
    return InForce(Generation(1, config or Config(), 100, new_policy(book)), inbox)


async def test_it_takes_each_new_generation() -> None:
    """So that it can answer about the policy in force; what it no longer needs it lets go."""
    before = open_descriptors()
    outbox, inbox = new_channel()
    loop = asyncio.get_running_loop()
    in_force = InForce(generation(1), inbox)
    in_force.watch(loop)
    for number in (2, 3):
        parcel = Parcel(generation(number))
        outbox.send(parcel)
        parcel.close()
        await until(lambda number=number: in_force.generation.number == number, "the generation")  # type: ignore[misc]
    assert outbox.answers() == [1, 2, 3]
    assert list(Engine(in_force.generation.compiled()).rules()) == []
    outbox.close()
    await turns()
    assert not loop.remove_reader(inbox.fileno())
    inbox.close()
    os.close(in_force.generation.policy)
    assert before == open_descriptors()


async def test_it_explains_by_the_policy_in_force(channel: Outbox) -> None:
    """And by that of the next generation, once it has come."""
    it = in_force(allowing("en.wikipedia.org"), channel)
    loop = asyncio.get_running_loop()
    it.watch(loop)
    first = await it.explain(ASKED)
    parcel = Parcel(Generation(2, Config(), 100, new_policy(allowing("de.wikipedia.org"))))
    channel.send(parcel)
    parcel.close()
    await until(lambda: it.generation.number == 2, "the generation")
    second = await it.explain(ASKED)
    loop.remove_reader(channel.inbox.fileno())  # type: ignore[attr-defined]
    os.close(it.generation.policy)
    assert (first["verdict"], first["rule"], first["line"]) == ("allow", "some", 2)
    assert (second["verdict"], second["reason"]) == ("deny", "default")


async def test_it_asks_for_the_port_that_would_be_dialled(channel: Outbox) -> None:
    it = in_force(allowing("en.wikipedia.org", "8443"), channel, Config(upstream=Upstream(port=8443)))
    assert (await it.explain(ASKED))["verdict"] == "allow"
    os.close(it.generation.policy)


async def test_many_may_ask_and_too_many_may_not(channel: Outbox) -> None:
    """Explaining takes a while with many rules: who would wait behind sixteen others is told so."""
    it = in_force(allowing("en.wikipedia.org"), channel)
    answers = await asyncio.gather(*(it.explain(ASKED) for _ in range(20)), return_exceptions=True)
    os.close(it.generation.policy)
    assert [isinstance(answer, BusyError) for answer in answers] == [False] * 16 + [True] * 4


async def test_it_counts_the_rules_of_each_file(channel: Outbox) -> None:
    it = in_force(allowing("en.wikipedia.org"), channel)
    assert [await it.rules_by_file(), await it.rules_by_file()] == [{"p.yaml": 1}] * 2
    os.close(it.generation.policy)
