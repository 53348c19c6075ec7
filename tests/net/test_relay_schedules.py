"""The relay over schedules that nobody would think of: what both ends see is what the model says they must see.

The ends are real sockets. tests.support.schedules has the schedules and the model; tests.net.test_relay has the
cases that somebody did think of.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from sniproxy.net.sockets import reset
from sniproxy.outcome import Reason
from tests.net.loopback import PATIENCE, Pair, tcp_pair, turns, unix_pair, watching
from tests.net.test_relay import Stage, Watched, relaying
from tests.support.schedules import KIB, MIB, assert_lawful, new_accounts, play, some_schedule, some_size
from tests.support.soaking import soak_seconds, soak_seed, tell

SCHEDULES = 400  # of each kind, and there are eight
AT_ONCE = 16

# A small buffer makes every write wait for a reader, and takes its time for it.
LIMITS = {tcp_pair: 4 * MIB, unix_pair: 2 * MIB}


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    with watching() as both:
        yield both


async def tell_as_the_story_does(stage: Stage) -> Reason:
    """What the story of a connection does with its sockets when its relay is over."""
    reason = await stage.running
    if reason is Reason.CLIENT_RESET:
        await reset(stage.upstream)
    elif reason is Reason.UPSTREAM_RESET:
        await reset(stage.downstream)
    stage.close_when_over()
    return reason


async def perform(watched: Watched, seed: str, *, breaks: bool, pipes: int) -> Reason:
    """One schedule, from its seed. Fails where it is not lawful."""
    dice = random.Random(seed)
    tiny = dice.random() < 0.2
    make_pair = tcp_pair if breaks or dice.random() < 0.7 else unix_pair
    limit = 60 * KIB if tiny else dice.choice([200, 64 * KIB, LIMITS[make_pair]])
    schedule = some_schedule(dice, limit=limit, breaks=breaks)
    client, origin = new_accounts(schedule, number=dice.randrange(1000))
    head = bytes(client.script[: dice.choice([0, 0, 1, 500, 2000, 100 * KIB])])
    client.said = len(head)
    early = [some_size(dice, 100 * KIB) if dice.random() < 0.3 else 0 for _ in range(2)]

    def before(down: Pair, up: Pair) -> None:
        """What has come already when the relay begins."""
        for account, sock, size in ((client, down[1], early[0]), (origin, up[1], early[1])):
            account.said += sock.send(account.script[account.said : account.said + size]) if size else 0

    async with relaying(
        watched,
        downstream=make_pair(4 * KIB if tiny else 0),
        upstream=tcp_pair(4 * KIB if tiny or dice.random() < 0.1 else 0),
        pipes=pipes,
        head=head,
        before=before,
        known=dice.random() < 0.5,
    ) as stage:
        playing = asyncio.gather(
            play(stage.client, client, turns), play(stage.origin, origin, turns), tell_as_the_story_does(stage)
        )
        try:
            _, _, reason = await asyncio.wait_for(playing, PATIENCE)
            assert_lawful(client, origin, reason, stage.relay.received, stage.relay.sent)
            assert stage.counted_sent.total == stage.relay.sent
            assert origin.heard <= stage.counted_received.total <= stage.relay.received
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"seed {seed!r}: {error!r}\nclient {client}\norigin {origin}") from error
    return reason


async def perform_all(watched: Watched, seed: str, count: int, *, breaks: bool, pipes: int) -> Counter[Reason]:
    """So many schedules, some at a time; how often they ended for which reason."""
    reasons: Counter[Reason] = Counter()
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            reasons[await perform(watched, f"{seed} {number}", breaks=breaks, pipes=pipes)] += 1

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return reasons


@pytest.mark.parametrize("pipes", [0, 2], ids=["copied", "spliced"])
async def test_whatever_both_ends_do_each_hears_all_that_the_other_said_and_then_its_end(
    watched: Watched, pipes: int
) -> None:
    """They write, pause, read or do not read, and half-close, in any order. What the relay counted is what was said."""
    reasons = await perform_all(watched, f"orderly {pipes}", SCHEDULES, breaks=False, pipes=pipes)
    assert reasons == {Reason.DONE: SCHEDULES}


@pytest.mark.parametrize("pipes", [0, 2], ids=["copied", "spliced"])
async def test_whoever_breaks_off_the_other_hears_a_beginning_and_a_reset(watched: Watched, pipes: int) -> None:
    """A reset, or a close by one who has not heard the end, at any moment: what had arrived by then is heard, and
    behind it no end that nobody made. The relay names the side.
    """
    reasons = await perform_all(watched, f"broken {pipes}", SCHEDULES, breaks=True, pipes=pipes)
    assert reasons.keys() == {Reason.DONE, Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}


@pytest.mark.soak
@pytest.mark.parametrize("breaks", [False, True], ids=["orderly", "broken"])
@pytest.mark.parametrize("pipes", [0, 1, 2])
async def test_ever_new_schedules_are_lawful(watched: Watched, pipes: int, breaks: bool) -> None:
    """Both of these, for a while and from a seed that is told."""
    seed, batch = soak_seed(), 0
    until = time.monotonic() + soak_seconds(60) / 12  # both loops, and all of the parameters
    while time.monotonic() < until:
        batch += 1
        reasons = await perform_all(watched, f"{seed} {batch}", 500, breaks=breaks, pipes=pipes)
        assert reasons.total() == 500
    tell(f"{500 * batch} schedules")
