"""The channel, both ends of it: a generation arrives whole, and owns its descriptors."""

import os
import socket

import pytest

from sniproxy.config.model import Config, Upstream
from sniproxy.config.units import TcpAddress
from sniproxy.names import ServerName
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Action, Ground, Rule, Rulebook
from sniproxy.reload.channel import Inbox, Parcel, new_channel
from sniproxy.reload.generation import Generation
from tests.net.loopback import no_descriptor_left, open_descriptors
from tests.reload.readings import generation, new_policy

ANSWER: tuple[TcpAddress, ...] = (TcpAddress("127.0.0.1", 9),)
HOSTS = {ServerName(f"host{number}.example.org"): ANSWER for number in range(10_000)}
LARGE = Config(upstream=Upstream(hosts=HOSTS))


def receive(inbox: Inbox) -> Generation:
    generation = inbox.receive()
    assert generation is not None
    return generation


def test_a_generation_arrives_and_is_confirmed() -> None:
    """With a config of any size, and the rules; nothing is left open on either side."""
    before = open_descriptors()
    outbox, inbox = new_channel()
    rule = Rule(Ground("policy.yaml", "a", "policy.yaml", 1), Action.DENY, ((),))
    parcel = Parcel(Generation(2**40, LARGE, 77, new_policy(Rulebook((rule,)))))
    outbox.send(parcel)
    parcel.close()
    got = receive(inbox)
    assert (got.number, got.config, got.connection_limit) == (2**40, LARGE, 77)
    assert list(Engine(got.compiled()).rules()) == [rule]
    os.close(got.policy)
    inbox.confirm(got.number)
    assert outbox.answers() == [2**40]
    outbox.close()
    inbox.close()
    assert before == open_descriptors()


def test_neither_end_waits() -> None:
    outbox, inbox = new_channel()
    assert (inbox.receive(), outbox.answers()) == (None, [])
    outbox.close()
    inbox.close()


def test_all_receivers_get_the_whole_of_it() -> None:
    """They share the files, and none may move the place where another reads."""
    channels = [new_channel() for _ in range(5)]
    parcel = Parcel(generation(3, LARGE))
    for outbox, _ in channels:
        outbox.send(parcel)
    for _, inbox in channels:
        got = receive(inbox)
        assert got.config == LARGE
        os.close(got.policy)
    parcel.close()
    for outbox, inbox in channels:
        outbox.close()
        inbox.close()


def test_generations_come_in_their_order() -> None:
    outbox, inbox = new_channel()
    for number in (1, 2, 3):
        parcel = Parcel(generation(number))
        outbox.send(parcel)
        parcel.close()
    for number in (1, 2, 3):
        got = receive(inbox)
        os.close(got.policy)
        inbox.confirm(number)
    assert (outbox.answers(), inbox.receive()) == ([1, 2, 3], None)
    outbox.close()
    inbox.close()


@pytest.mark.parametrize("has_heard", [True, False])
def test_the_end_of_the_supervisor_is_an_end(*, has_heard: bool) -> None:
    """Also of one that was killed before it had read what we said."""
    outbox, inbox = new_channel()
    inbox.confirm(1)
    if has_heard:
        outbox.answers()
    outbox.close()
    with pytest.raises(EOFError):
        inbox.receive()
    inbox.confirm(1)
    inbox.close()


def test_sending_to_the_dead_is_no_error() -> None:
    """Who died is replaced by one that is born with the newest."""
    outbox, inbox = new_channel()
    inbox.close()
    parcel = Parcel(generation())
    outbox.send(parcel)
    parcel.close()
    assert outbox.answers() == []
    outbox.close()


def test_without_a_descriptor_to_spare_nothing_is_taken() -> None:
    """It is never half a generation; what could not be taken is not confirmed."""
    outbox, inbox = new_channel()
    parcel = Parcel(generation())
    for _ in range(2):
        outbox.send(parcel)
    for but in (0, 1):
        before = open_descriptors()
        with no_descriptor_left(but):
            assert inbox.receive() is None
        assert before == open_descriptors()
    parcel.close()
    outbox.close()
    inbox.close()


def test_the_channel_is_of_packets() -> None:
    """A number is never torn, and needs no length."""
    outbox, inbox = new_channel()
    with socket.socket(fileno=os.dup(inbox.fileno())) as sock:
        assert sock.type == socket.SOCK_SEQPACKET
    outbox.close()
    inbox.close()
