"""Bringing processes to one generation: who gets which, and who is given up."""

import os
from collections.abc import Iterator

import pytest

from sniproxy.reload.channel import Inbox, Parcel, new_channel
from sniproxy.reload.fanout import Fanout
from tests.net.loopback import open_descriptors
from tests.reload.readings import generation


class World:
    """A fan-out, the other ends of its channels, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fanout = Fanout(lambda: self.now)
        self.inboxes: dict[str, Inbox] = {}

    def publish(self, number: int) -> None:
        self.fanout.publish(Parcel(generation(number)))

    def start(self, name: str) -> None:
        """A process is forked: it has what is newest now."""
        outbox, inbox = new_channel()
        if name in self.inboxes:
            self.inboxes[name].close()
        self.inboxes[name] = inbox
        self.fanout.add(name, outbox)

    def take(self, name: str) -> int:
        """A process takes what was sent to it, and says so; 0 if nothing was."""
        got = self.inboxes[name].receive()
        if got is None:
            return 0
        os.close(got.policy)
        self.say(name, got.number)
        return got.number

    def say(self, name: str, number: int) -> None:
        self.inboxes[name].confirm(number)
        self.fanout.collect()

    @property
    def is_complete(self) -> bool:
        return self.fanout.is_complete()


@pytest.fixture
def its() -> Iterator[World]:
    """Two workers that run, and have the first generation."""
    before = open_descriptors()
    world = World()
    world.publish(1)
    for name in ("one", "two"):
        world.start(name)
        world.say(name, 1)
    yield world
    world.fanout.close()
    for inbox in world.inboxes.values():
        inbox.close()
    assert before == open_descriptors()


def test_all_get_the_newest(its: World) -> None:
    its.publish(2)
    assert not its.is_complete
    assert (its.take("one"), its.is_complete) == (2, False)
    assert (its.take("two"), its.is_complete) == (2, True)


def test_who_is_slow_misses_some_and_gets_no_old_ones(its: World) -> None:
    """One at a time is on its way, and the next is the newest there is."""
    for number in (2, 3, 4):
        its.publish(number)
    assert [its.take("one") for _ in range(3)] == [2, 4, 0]


def test_a_new_process_is_born_with_the_newest(its: World) -> None:
    its.publish(2)
    its.start("one")
    assert its.take("one") == 0
    its.take("two")
    assert not its.is_complete
    its.say("one", 2)
    assert its.is_complete


def test_a_new_process_gets_what_came_while_it_was_born(its: World) -> None:
    its.start("one")
    its.publish(2)
    assert its.take("one") == 0
    its.say("one", 1)
    assert its.take("one") == 2


def test_the_dead_are_not_waited_for(its: World) -> None:
    its.publish(2)
    its.take("one")
    its.fanout.remove("two")
    assert its.is_complete


def test_who_does_not_take_it_is_stuck(its: World) -> None:
    """After its time, and told once."""
    its.publish(2)
    its.take("one")
    assert (its.fanout.seconds_left(), its.fanout.stuck()) == (10.0, [])
    its.now += 10.0
    assert (its.fanout.seconds_left(), its.fanout.stuck(), its.fanout.stuck()) == (0.0, ["two"], [])


def test_more_generations_give_no_more_time(its: World) -> None:
    its.publish(2)
    its.now += 6.0
    its.publish(3)
    its.now += 4.0
    assert its.fanout.stuck() == ["one", "two"]


def test_who_has_taken_all_has_all_the_time(its: World) -> None:
    assert its.fanout.seconds_left() == float("inf")
    its.publish(2)
    its.take("one")
    its.take("two")
    its.now += 3600.0
    its.fanout.collect()
    assert (its.fanout.stuck(), its.fanout.seconds_left()) == ([], float("inf"))


def test_an_old_policy_is_kept_for_a_while(its: World) -> None:
    """So that no worker is the last who has it, and has to give its memory back."""
    before = open_descriptors()
    its.publish(2)
    its.take("one")
    its.take("two")
    kept = open_descriptors()
    its.now += 29.0
    its.fanout.collect()
    assert open_descriptors() == kept
    its.now += 1.0
    assert its.fanout.seconds_left() == 0.0
    its.fanout.collect()
    assert open_descriptors() == before


def test_of_many_old_policies_few_are_kept(its: World) -> None:
    before = open_descriptors()
    for number in range(2, 50):
        its.publish(number)
    assert open_descriptors() - before <= 2 * (8 + 2)


def test_a_new_process_has_more_time(its: World) -> None:
    """It has to load what it is made of."""
    its.start("one")
    its.now += 59.0
    assert its.fanout.stuck() == []
    its.now += 1.0
    assert its.fanout.stuck() == ["one"]
