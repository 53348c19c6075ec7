"""The resolver against who owns a name's DNS, or gets between: what a reply may say, and what comes of it.

A reply is taken only if it is whole, well-formed, and fits the question in every part; of what it says only the chain
from the question to its addresses counts. Whatever comes, a lookup ends in an answer or in a ResolutionError, and
leaves no task and no descriptor behind.
"""

import asyncio
import itertools
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest

from sniproxy.names import MAX_LENGTH, ServerName
from sniproxy.net.dns_cache import FAILURE_TTL, MAX_ADDRESSES, FailureKind
from sniproxy.net.guard import MAX_ENDPOINTS, Guard
from sniproxy.net.resolver import ResolutionError
from tests.net.resolving import IMPATIENT, IPV4, IPV6, NAME, OTHER, Resolving, both_families, resolving
from tests.support.dns_server import (
    Asked,
    Raw,
    Script,
    always,
    answering,
    by_tcp,
    by_transport,
    in_turn,
    refusing,
    scripted_server,
    silence,
    unused_port,
)
from tests.support.hostile_replies import (
    FORGED,
    MALFORMED,
    chain,
    header,
    mutated,
    of_unknown_types,
    question,
    rich_reply,
)

A, CHAOS = 1, 3


class TestMalformedReplies:
    """What is no whole and right reply to the question is none at all."""

    @pytest.mark.parametrize("kind", MALFORMED)
    async def test_a_malformed_datagram_is_passed_over(self, kind: str) -> None:
        """It may come from somebody who guesses: the right reply is still waited for."""

        async def script(asked: Asked) -> list[bytes]:
            return [MALFORMED[kind](asked), *await both_families(asked)]

        async with resolving(script) as its:
            assert (await its.addresses(), its.server.questions()) == ((IPV4,), [("A", "udp")])

    @pytest.mark.parametrize("kind", MALFORMED)
    async def test_a_malformed_reply_by_tcp_is_a_failure_of_its_server(self, kind: str) -> None:
        """Only the server itself can have sent it, so the next one is asked."""
        async with (
            scripted_server(by_tcp(always(MALFORMED[kind]))) as broken,
            resolving(both_families, broken.address) as its,
        ):
            assert await its.addresses() == (IPV4,)
            assert broken.questions() == [("A", "udp"), ("A", "tcp")]

    @pytest.mark.parametrize(
        "stream",
        [Raw(), Raw(b"\0"), Raw(b"\0\0"), Raw(b"\xff\xff" + bytes(600)), Raw(b"\0\x0c" + bytes(11))],
        ids=["nothing", "half a length", "a length of nothing", "fewer bytes than said", "one byte too few"],
    )
    async def test_a_broken_stream_is_a_failure(self, stream: Raw) -> None:
        async with resolving(by_tcp(always(lambda _asked: stream))) as its:
            assert FailureKind.FAILED is (await its.failure()).kind

    async def test_a_stream_that_says_nothing_is_a_timeout(self) -> None:
        """The timeout is one for all that a lookup does, over both transports."""

        async def held(_asked: Asked) -> list[bytes]:
            return await asyncio.Event().wait() and []

        async with resolving(by_tcp(held), timeout=IMPATIENT) as its:
            assert FailureKind.TIMEOUT is (await its.failure()).kind

    async def test_a_reply_that_is_cut_by_tcp_too_is_a_failure(self) -> None:
        """Read as it is, it would be a denial."""
        async with resolving(always(Asked.truncated)) as its:
            failure = await its.failure()
            assert (failure.kind, "cut even by TCP" in failure.detail) == (FailureKind.FAILED, True)

    async def test_a_cut_reply_of_a_server_without_tcp_is_a_failure(self) -> None:
        """Its addresses are not used: what was cut off may be what matters."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            udp.setblocking(False)
            loop = asyncio.get_running_loop()

            def reply() -> None:
                wire, client = udp.recvfrom(4096)
                query = dns.message.from_wire(wire)
                asked = Asked(NAME, "A", "udp", query)
                whole = bytearray(asked.reply(f"{NAME}. 60 A {FORGED}"))
                whole[2] |= dns.flags.TC >> 8
                udp.sendto(whole, client)

            loop.add_reader(udp, reply)
            try:
                async with resolving(both_families, f"127.0.0.1:{udp.getsockname()[1]}") as its:
                    assert await its.addresses() == (IPV4,)
            finally:
                loop.remove_reader(udp)


@contextmanager
def sending_from(host: str, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        yield sock


class TestForgedReplies:
    """Who cannot see the question has to guess its source port, its identifier and its server (RFC 5452)."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
    async def test_a_reply_from_another_port_or_address_never_arrives(self, host: str) -> None:
        """It is right in every byte, and first."""

        async def script(asked: Asked) -> list[bytes]:
            port = 0 if host == "127.0.0.1" else int(its.server.address.rpartition(":")[2])
            with sending_from(host, port) as other:
                other.sendto(asked.reply(f"{NAME}. 60 A {FORGED}"), asked.client)
            return await both_families(asked)

        async with resolving(script) as its:
            assert await its.addresses() == (IPV4,)

    async def test_many_wrong_identifiers_do_not_wear_it_out(self) -> None:
        """Guesses are passed over, however many; they end nothing, and start nothing."""

        async def script(asked: Asked) -> list[bytes]:
            forged = asked.reply(f"{NAME}. 60 A {FORGED}")[2:]
            guesses = [identifier for identifier in range(200) if identifier != asked.query.id]
            return [*(struct.pack("!H", guess) + forged for guess in guesses), *await both_families(asked)]

        async with resolving(script) as its:
            assert (await its.addresses(), len(its.server.asked)) == ((IPV4,), 1)

    async def test_each_question_has_a_port_and_an_identifier_of_its_own(self) -> None:
        async with resolving(both_families) as its:
            for number in range(24):
                await its.addresses(ServerName(f"n{number}.test"))
            assert len({asked.client[1] for asked in its.server.asked}) > 18  # a few may fall together by chance
            assert len({asked.query.id for asked in its.server.asked}) > 18

    async def test_a_reply_that_comes_too_late_is_no_reply_to_the_next_question(self) -> None:
        """Neither at the old port, where nobody is any more, nor at the new one."""
        late: list[Asked] = []

        async def first(asked: Asked) -> list[bytes]:
            late.append(asked)
            return []

        async def second(asked: Asked) -> list[bytes]:
            reply = late[0].reply(f"{NAME}. 60 A {FORGED}")
            with sending_from("127.0.0.1", 0) as other:
                other.sendto(reply, late[0].client)
            return [reply, *await both_families(asked)]

        async with resolving(first, timeout=IMPATIENT) as its:
            assert FailureKind.TIMEOUT is (await its.failure()).kind
            its.server.script = second
            its.clock.now += FAILURE_TTL
            assert await its.addresses() == (IPV4,)

    async def test_a_reply_after_the_timeout_changes_nothing(self) -> None:
        async with resolving(silence, timeout=IMPATIENT) as its:
            await its.failure()
            asked = its.server.asked[0]
            with sending_from("127.0.0.1", 0) as other:
                other.sendto(asked.reply(f"{NAME}. 60 A {FORGED}"), asked.client)
            with pytest.raises(ResolutionError):
                its.resolver.cached(NAME)

    async def test_names_are_compared_without_case(self) -> None:
        """As servers write them, and as RFC 4343 has it: in the question, in owners, and along a chain."""

        def reply(asked: Asked) -> bytes:
            message = asked.reply("WWW.Test. 60 CNAME a.TEST.", f"A.test. 60 A {IPV4}")
            return message.replace(b"\3www\4test", b"\3wWw\4tEsT")

        async with resolving(always(reply)) as its:
            assert await its.addresses() == (IPV4,)

    async def test_the_identifier_and_the_port_of_a_failure_have_to_fit_too(self) -> None:
        """Or who guesses nothing could end every lookup."""

        async def script(asked: Asked) -> list[bytes]:
            refusal = asked.reply(rcode=dns.rcode.SERVFAIL)
            return [bytes([refusal[0] ^ 1]) + refusal[1:], *await both_families(asked)]

        async with resolving(script) as its:
            assert (await its.addresses(), len(its.server.asked)) == ((IPV4,), 1)


class TestPoisoning:
    """Only the chain from the question to its addresses counts; the rest is neither used nor remembered."""

    SMUGGLED = (f"{OTHER}. 3600 A {FORGED}", f"{NAME}. 3600 A {FORGED}")

    async def test_addresses_beside_the_answer_are_not_used(self) -> None:
        answer = f"{NAME}. 60 A {IPV4}"
        script = always(lambda asked: asked.reply(answer, authority=self.SMUGGLED, additional=self.SMUGGLED))
        async with resolving(script) as its:
            assert (await its.addresses(), its.resolver.cached(OTHER)) == ((IPV4,), None)

    async def test_nor_in_place_of_one(self) -> None:
        script = always(lambda asked: asked.reply(authority=self.SMUGGLED, additional=self.SMUGGLED))
        async with resolving(script) as its:
            assert FailureKind.NXDOMAIN is (await its.failure()).kind
            assert its.resolver.cached(OTHER) is None

    @pytest.mark.parametrize(
        "stray",
        [
            f"{OTHER}. 3600 A {FORGED}",
            f"test. 3600 A {FORGED}",
            f"*.test. 3600 A {FORGED}",
            f"a.{NAME}. 3600 A {FORGED}",
            f"{NAME}. 3600 AAAA {IPV6}",
            f"{NAME}. 3600 TXT {FORGED}",
            "test. 3600 DNAME evil.example.",
            f"{NAME}. 3600 SVCB 1 {OTHER}. ipv4hint={FORGED}",
        ],
    )
    async def test_records_of_another_owner_or_type_are_no_answer(self, stray: str) -> None:
        async with resolving(answering(stray)) as its:
            assert FailureKind.NXDOMAIN is (await its.failure()).kind
            assert its.resolver.cached(OTHER) is None

    async def test_records_of_another_class_are_no_answer(self) -> None:
        def reply(asked: Asked) -> bytes:
            chaos = struct.pack("!HHIH", A, CHAOS, 60, 5) + b"\1a\0\0\7"
            return header(asked, 1, 1, 0, 0) + question(asked) + b"\xc0\x0c" + chaos

        async with resolving(always(reply)) as its:
            assert FailureKind.NXDOMAIN is (await its.failure()).kind

    async def test_an_address_beside_a_denial_is_a_failure_of_the_server(self) -> None:
        """NXDOMAIN with an answer contradicts itself."""
        contradiction = always(lambda asked: asked.reply(f"{NAME}. 60 A {FORGED}", rcode=dns.rcode.NXDOMAIN))
        async with scripted_server(contradiction) as first, resolving(both_families, first.address) as its:
            assert await its.addresses() == (IPV4,)

    async def test_a_denial_is_not_prolonged_by_the_soa_of_another_zone(self) -> None:
        foreign = "evil.example. 86400 SOA ns.test. root.test. 1 3600 600 86400 86400"
        async with resolving(refusing(dns.rcode.NXDOMAIN, foreign), negative_ttl=5) as its:
            await its.failure()
            its.clock.now += 5
            assert its.resolver.cached(NAME) is None


class TestAliases:
    """Where a CNAME leads is where its reply says, and no question of ours follows it."""

    async def test_a_chain_as_long_as_real_ones_is_followed(self) -> None:
        async with resolving(answering(*chain(NAME, 10, IPV4))) as its:
            assert await its.addresses() == (IPV4,)

    async def test_the_order_of_its_links_does_not_matter(self) -> None:
        async with resolving(answering(*reversed(chain(NAME, 10, IPV4)))) as its:
            assert await its.addresses() == (IPV4,)

    @pytest.mark.parametrize("length", [17, 400])
    async def test_a_longer_one_is_a_failure(self, length: int) -> None:
        async with resolving(by_tcp(answering(*chain(NAME, length, IPV4)))) as its:
            assert FailureKind.FAILED is (await its.failure()).kind

    @pytest.mark.parametrize(
        "circle",
        [
            (f"{NAME}. 60 CNAME {NAME}.",),
            (f"{NAME}. 60 CNAME a.test.", "a.test. 60 CNAME b.test.", "b.test. 60 CNAME a.test."),
            (f"{NAME}. 60 CNAME a.test.", f"a.test. 60 CNAME {NAME}.", f"b.test. 60 A {FORGED}"),
        ],
        ids=["to itself", "into a circle", "with an address beside it"],
    )
    async def test_a_circle_is_a_failure(self, circle: tuple[str, ...]) -> None:
        async with resolving(answering(*circle)) as its:
            assert FailureKind.FAILED is (await its.failure()).kind

    @pytest.mark.parametrize("target", ["kubernetes.default.svc.cluster.local", "localhost", "metadata", "10.0.0.1"])
    async def test_no_question_is_asked_about_where_it_leads(self, target: str) -> None:
        """So no reply makes this proxy look up a name of the cluster: an alias without an address has none."""
        async with resolving(answering(f"{NAME}. 60 CNAME {target}."), family="both") as its:
            assert FailureKind.NXDOMAIN is (await its.failure()).kind
            assert its.server.names() == {NAME}

    @pytest.mark.parametrize(("first", "last", "expected"), [(0, 3600, 1), (3600, 0, 1), (86400, 7, 7)])
    async def test_it_lives_as_long_as_its_shortest_link(self, first: int, last: int, expected: float) -> None:
        records = (f"{NAME}. {first} CNAME a.test.", f"a.test. {last} A {IPV4}")
        async with resolving(answering(*records), min_ttl=1) as its:
            assert (await its.resolver.resolve(NAME)).ttl == expected

    async def test_the_longest_name_can_be_asked_for(self) -> None:
        longest = ServerName(".".join(["a" * 63] * 3 + ["b" * 61]))
        assert len(longest) == MAX_LENGTH
        async with resolving(both_families) as its:
            assert (await its.addresses(longest), its.server.names()) == ((IPV4,), {longest})


class TestLargeAnswers:
    """An answer of thousands costs what an answer of a few does."""

    THOUSANDS = tuple(f"{NAME}. 60 A {IPv4Address('8.0.0.0') + number}" for number in range(3000))

    async def test_of_thousands_of_addresses_few_are_kept(self) -> None:
        async with resolving(by_tcp(answering(*self.THOUSANDS))) as its:
            addresses = await its.addresses()
            assert (len(addresses), its.in_memory()) == (MAX_ADDRESSES, addresses)
            assert len(Guard().vet(addresses, 443).endpoints) == MAX_ENDPOINTS

    async def test_replies_of_unknown_types_leave_nothing_in_memory(self) -> None:
        """dnspython would keep a class of each type for ever: 4 MB a reply."""
        classes = itertools.count(2)
        async with resolving(by_tcp(always(lambda asked: of_unknown_types(asked, next(classes))))) as its:
            before = resident_memory()
            for number in range(50):
                await its.failure(ServerName(f"n{number}.test"))
            assert resident_memory() - before < 32 << 20

    async def test_an_address_counts_once(self) -> None:
        """Or one that does not answer would be dialled sixteen times."""
        async with resolving(answering(*[f"{NAME}. 60 A {IPV4}"] * 20)) as its:
            assert await its.addresses() == (IPV4,)

    @pytest.mark.parametrize(
        ("ttl", "expected"), [(0, 1), (2**31 - 1, 300), (2**31, 1), (2**32 - 1, 1)], ids="{:#x}".format
    )
    async def test_the_time_to_live_is_within_its_bounds(self, ttl: int, expected: float) -> None:
        """RFC 2181 section 8: one with its highest bit set counts as zero."""

        def reply(asked: Asked) -> bytes:
            return asked.reply(f"{NAME}. 16909060 A {IPV4}").replace(b"\1\2\3\4", struct.pack("!I", ttl))

        async with resolving(always(reply), min_ttl=1, max_ttl=300) as its:
            assert (await its.resolver.resolve(NAME)).ttl == expected

    async def test_a_denial_for_ever_is_one_for_a_while(self) -> None:
        soa = "test. 2147483647 SOA ns.test. root.test. 1 3600 600 86400 2147483647"
        async with resolving(refusing(dns.rcode.NXDOMAIN, soa), negative_ttl=5) as its:
            await its.failure()
            its.clock.now += 5
            assert its.resolver.cached(NAME) is None


def resident_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


REFUSALS = ("FORMERR", "SERVFAIL", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "BADVERS")


class TestBrokenServers:
    """A server that does not know is no server that denies: the next one is asked."""

    @pytest.mark.parametrize("rcode", REFUSALS)
    async def test_every_failure_goes_on_to_the_next_server(self, rcode: str) -> None:
        async with (
            scripted_server(refusing(dns.rcode.from_text(rcode))) as first,
            resolving(both_families, first.address) as its,
        ):
            assert await its.addresses() == (IPV4,)

    @pytest.mark.parametrize("rcode", ["FORMERR", "SERVFAIL", "NOTIMP", "REFUSED"])
    async def test_so_does_one_that_repeats_no_question(self, rcode: str) -> None:
        """Some servers send such failures as a header alone."""

        def reply(asked: Asked) -> bytes:
            return header(asked, 0, 0, 0, 0, flags=0x8180 | dns.rcode.from_text(rcode))

        async with scripted_server(always(reply)) as first, resolving(both_families, first.address) as its:
            assert await its.addresses() == (IPV4,)

    @pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN])
    async def test_a_denial_that_repeats_no_question_is_passed_over(self, rcode: dns.rcode.Rcode) -> None:
        """It would be a denial of anything."""

        async def script(asked: Asked) -> list[bytes]:
            return [header(asked, 0, 0, 0, 0, flags=0x8180 | rcode), *await both_families(asked)]

        async with resolving(script) as its:
            assert await its.addresses() == (IPV4,)

    async def test_a_referral_is_no_denial(self) -> None:
        """A server that is not meant for us, or not for this zone, names others and says nothing of the name."""
        referral = always(
            lambda asked: asked.reply(
                authority=["test. 60 NS ns.test."], additional=["ns.test. 60 A 192.0.2.53"], recursive=False
            )
        )
        async with scripted_server(referral) as first, resolving(both_families, first.address) as its:
            assert await its.addresses() == (IPV4,)

    async def test_an_empty_reply_of_a_server_that_does_not_resolve_is_no_denial(self) -> None:
        """Neither authoritative nor recursive, it cannot know."""
        lame = always(lambda asked: asked.reply(recursive=False))
        async with scripted_server(lame) as first, resolving(both_families, first.address) as its:
            assert await its.addresses() == (IPV4,)

    @pytest.mark.parametrize("sign", ["it is authoritative", "it has the SOA"])
    async def test_a_denial_without_recursion_stands_where_a_sign_of_it_is(self, sign: str) -> None:
        def reply(asked: Asked) -> bytes:
            soa = "test. 60 SOA ns.test. root.test. 1 3600 600 86400 60" if sign == "it has the SOA" else ""
            message = bytearray(asked.reply(soa=soa, recursive=False))
            message[2] |= dns.flags.AA >> 8 if sign == "it is authoritative" else 0
            return bytes(message)

        async with scripted_server(always(reply)) as first, resolving(both_families, first.address) as its:
            assert FailureKind.NXDOMAIN is (await its.failure()).kind

    async def test_the_servers_are_asked_twice_each_and_then_no_more(self) -> None:
        broken = refusing(dns.rcode.SERVFAIL)
        async with scripted_server(broken) as first, resolving(broken, first.address) as its:
            await its.failure()
            assert (len(first.asked), len(its.server.asked)) == (2, 2)

    async def test_an_answer_without_addresses_does_not_replace_one_while_it_is_good(self) -> None:
        """What a server says later counts when the answer in memory has expired, and not before."""
        async with resolving(in_turn(both_families, refusing(dns.rcode.NXDOMAIN))) as its:
            await its.addresses()
            its.clock.now += 59
            assert await its.addresses() == (IPV4,)
            its.clock.now += 1
            assert FailureKind.NXDOMAIN is (await its.failure()).kind

    async def test_malformed_replies_bring_a_stale_answer_back(self) -> None:
        """A server that talks nonsense is down as much as one that is silent (RFC 8767)."""
        async with resolving(both_families, stale_ttl=600) as its:
            await its.addresses()
            its.server.script = by_tcp(always(MALFORMED["an address of three bytes"]))
            its.clock.now += 61
            assert await its.addresses() == (IPV4,)

    async def test_a_server_that_nobody_serves_by_tcp_or_udp_is_a_failure(self) -> None:
        dead = f"127.0.0.1:{unused_port()}"
        async with resolving(refusing(dns.rcode.REFUSED), dead) as its:
            failure = await its.failure()
            assert (failure.kind, dead in failure.detail) == (FailureKind.FAILED, True)


def rebound(*answers: str) -> Script:
    """A name whose address is another each time."""
    return in_turn(*(answering(f"{NAME}. 0 A {address}") for address in answers))


class TestRebinding:
    """A name that points outside first and inside then: every answer is judged, and no answer changes a judgement."""

    async def test_what_is_vetted_does_not_change_with_the_next_answer(self) -> None:
        async with resolving(rebound("8.8.8.8", "169.254.169.254"), min_ttl=0) as its:
            guard = Guard()
            first = guard.vet(await its.addresses(), 443)
            second = guard.vet(await its.addresses(), 443)
            assert ([endpoint.host for endpoint in first.endpoints], second.endpoints) == (["8.8.8.8"], ())

    async def test_an_answer_without_a_life_is_asked_for_again_by_each_asker(self) -> None:
        async with resolving(rebound("8.8.8.8", "10.0.0.1", "8.8.4.4"), min_ttl=0) as its:
            assert [await its.addresses() for _ in range(3)] == [("8.8.8.8",), ("10.0.0.1",), ("8.8.4.4",)]

    async def test_a_least_life_holds_the_first_answer(self) -> None:
        async with resolving(rebound("8.8.8.8", "10.0.0.1"), min_ttl=1) as its:
            assert [await its.addresses() for _ in range(3)] == [("8.8.8.8",)] * 3

    async def test_a_stale_answer_is_judged_like_any_other(self) -> None:
        """What a network forbids meanwhile, it forbids."""
        async with resolving(rebound("8.8.8.8"), stale_ttl=600, min_ttl=0) as its:
            await its.addresses()
            its.server.script = refusing(dns.rcode.SERVFAIL)
            stale = await its.addresses()
            guard = Guard(deny_networks=[ip_network("8.8.8.0/24")])
            assert (stale, guard.vet(stale, 443).endpoints) == (("8.8.8.8",), ())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestNoise:
    """Replies of seeded noise: an answer or a ResolutionError comes of each, and nothing else, and nothing stays."""

    ROUNDS = 150

    @staticmethod
    async def outcome(its: Resolving) -> FailureKind | None:
        try:
            answer = await its.resolver.resolve(NAME)
        except ResolutionError as error:
            return error.kind
        assert 0 < len(answer.addresses) <= MAX_ADDRESSES
        assert 0 <= answer.ttl <= 300
        assert all(ip_address(address).version == 4 for address in answer.addresses)
        return None

    async def rounds(self, transport: str, seed: int) -> set[FailureKind | None]:
        """What so many replies come to, after a look at what they have left behind."""
        dice = random.Random(seed)
        refuse = refusing(dns.rcode.SERVFAIL)

        async def noise(asked: Asked) -> list[bytes]:
            reply = mutated(rich_reply(asked), dice)
            # What is passed over as a datagram would be waited for: a refusal ends the wait.
            return [reply, *await refuse(asked)] if transport == "udp" else [reply]

        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        async with resolving(noise if transport == "udp" else by_tcp(noise), min_ttl=0, negative_ttl=0) as its:
            await self.outcome(its)
            tasks, before = len(asyncio.all_tasks()), descriptors()
            outcomes = set()
            for _ in range(self.ROUNDS):
                outcomes.add(await self.outcome(its))
                its.clock.now += FAILURE_TTL
            await settled(tasks, before)
        assert complaints == [], f"seed {seed}"
        return outcomes

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    @pytest.mark.parametrize("seed", [1, 2])
    async def test_noise_ends_a_lookup_in_a_known_way(self, transport: str, seed: int) -> None:
        """Some of it is harmless, and some is not."""
        assert {None, FailureKind.FAILED} <= await self.rounds(transport, seed)

    @pytest.mark.soak
    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    async def test_ever_new_noise_does_too(self, transport: str) -> None:
        seed = random.randrange(2**32)
        deadline = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "60")) / 4
        while time.monotonic() < deadline:
            await self.rounds(transport, seed := seed + 1)

    async def test_noise_that_is_no_dns_at_all(self) -> None:
        dice = random.Random(3)
        noise = always(lambda _asked: dice.randbytes(dice.randrange(600)))
        async with resolving(by_transport(udp=always(Asked.truncated), tcp=noise)) as its:
            for _ in range(20):
                assert FailureKind.FAILED is (await its.failure()).kind
                its.clock.now += FAILURE_TTL


async def settled(tasks: int, open_files: int) -> None:
    """Once no more tasks and descriptors are there than before; closing takes the loop a few turns."""
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > tasks or descriptors() > open_files:
            await asyncio.sleep(0.001)
