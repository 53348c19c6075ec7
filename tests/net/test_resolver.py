"""The resolver, against a name server that follows a script and against a real one."""

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import ClassVar

import dns.message
import dns.rcode
import pytest

from sniproxy.config.model import Family, ResolverConfig
from sniproxy.config.units import parse_endpoint
from sniproxy.names import ServerName
from sniproxy.net import resolver as resolver_module
from sniproxy.net.dns_cache import FAILURE_TTL, MAX_ADDRESSES, STALE_RECHECK, FailureKind
from sniproxy.net.nameservers import Nameservers
from sniproxy.net.resolver import ResolutionError, Resolver
from tests.net.loopback import open_descriptors, turns
from tests.net.resolving import (
    IMPATIENT,
    IPV4,
    IPV6,
    NAME,
    OTHER,
    PATIENT,
    both_families,
    resolving,
)
from tests.support.dns_server import (
    Asked,
    Script,
    always,
    by_family,
    by_name,
    by_tcp,
    dnsmasq,
    in_turn,
    refusing,
    scripted_server,
    silence,
    unused_port,
)

SOA = "test. {ttl} SOA ns.test. root.test. 1 3600 600 86400 {minimum}"


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for both families, however busy this machine is."""
    monkeypatch.setattr(resolver_module, "RESOLUTION_DELAY", PATIENT)


async def until(condition: Callable[[], bool]) -> None:
    """Give the others their turns until the condition holds."""
    async with asyncio.timeout(PATIENT):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.usefixtures("patience")
class TestAnswers:
    """What a name server says, and what comes of it."""

    @pytest.mark.parametrize(
        ("family", "asked", "expected"),
        [
            ("ipv4", ["A"], (IPV4,)),
            ("ipv6", ["AAAA"], (IPV6,)),
            ("both", ["AAAA", "A"], (IPV6, IPV4)),
        ],
    )
    async def test_only_the_configured_families_are_asked_for(
        self, family: Family, asked: list[str], expected: tuple[str, ...]
    ) -> None:
        async with resolving(both_families, family=family) as its:
            assert expected == await its.addresses()
            assert sorted(asked) == sorted(asked.rdtype for asked in its.server.asked)

    async def test_addresses_keep_the_order_of_the_answer(self) -> None:
        """So that a server that rotates them spreads the load."""
        hosts = [3, 1, 2]
        records = [f"www.test. 60 A 192.0.2.{host}" for host in hosts]
        async with resolving(always(lambda asked: asked.reply(*records))) as its:
            assert tuple(f"192.0.2.{host}" for host in hosts) == await its.addresses()

    async def test_families_alternate(self) -> None:
        """So that whoever takes the first few gets some of each."""
        ipv4 = always(lambda asked: asked.reply("www.test. 60 A 192.0.2.1"))
        ipv6 = always(lambda asked: asked.reply("www.test. 60 AAAA 2001:db8::1", "www.test. 60 AAAA 2001:db8::2"))
        async with resolving(by_family(ipv4=ipv4, ipv6=ipv6), family="both") as its:
            assert await its.addresses() == ("2001:db8::1", "192.0.2.1", "2001:db8::2")

    async def test_an_answer_of_hundreds_is_cut(self) -> None:
        first = int(IPv4Address("198.18.0.1"))
        records = [f"www.test. 60 A {IPv4Address(first + host)}" for host in range(300)]
        script = in_turn(always(Asked.truncated), always(lambda asked: asked.reply(*records)))
        async with resolving(script) as its:
            assert len(await its.addresses()) == MAX_ADDRESSES

    async def test_a_chain_of_aliases_is_followed_and_lives_as_long_as_its_shortest_link(self) -> None:
        chain = ("www.test. 60 CNAME a.test.", "a.test. 7 CNAME b.test.", f"b.test. 60 A {IPV4}")
        async with resolving(always(lambda asked: asked.reply(*chain))) as its:
            answer = await its.resolver.resolve(NAME)
            assert (answer.addresses, answer.ttl) == ((IPV4,), 7)

    async def test_aliases_that_go_round_in_a_circle_are_a_failure(self) -> None:
        circle = ("www.test. 60 CNAME a.test.", "a.test. 60 CNAME www.test.")
        async with resolving(always(lambda asked: asked.reply(*circle))) as its:
            assert FailureKind.FAILED is (await its.failure()).kind

    async def test_names_are_absolute(self) -> None:
        """No search domain is ever appended, not even to a name without a dot."""
        async with resolving(refusing(dns.rcode.NXDOMAIN)) as its:
            await its.failure(ServerName("kubernetes"))
            assert [asked.name for asked in its.server.asked] == ["kubernetes"]

    async def test_a_truncated_answer_is_fetched_by_tcp(self) -> None:
        async def script(asked: Asked) -> list[bytes]:
            return [asked.truncated()] if asked.transport == "udp" else await both_families(asked)

        async with resolving(script) as its:
            assert await its.addresses() == (IPV4,)
            assert its.server.questions() == [("A", "udp"), ("A", "tcp")]

    async def test_a_name_that_does_not_exist(self) -> None:
        async with resolving(refusing(dns.rcode.NXDOMAIN)) as its:
            failure = await its.failure()
            assert FailureKind.NXDOMAIN is failure.kind
            assert f"www.test cannot be resolved: {its.server.address} answered NXDOMAIN" == str(failure)

    async def test_a_name_without_addresses_counts_as_one_that_does_not_exist(self) -> None:
        async with resolving(refusing(dns.rcode.NOERROR), family="both") as its:
            failure = await its.failure()
            assert FailureKind.NXDOMAIN is failure.kind
            assert failure.detail == "the name exists and has no addresses (NODATA)"


class TestForgery:
    """A reply counts only if it fits the question; others are passed over, and the right one is waited for."""

    @staticmethod
    def forged(asked: Asked) -> dict[str, bytes]:
        genuine = asked.reply("www.test. 60 A 203.0.113.66")
        other_name = dns.message.make_query("other.test.", asked.rdtype, id=asked.query.id)
        other = Asked("other.test", asked.rdtype, "udp", other_name)
        return {
            "another identifier": bytes([genuine[0] ^ 1]) + genuine[1:],
            "another question": other.reply("other.test. 60 A 203.0.113.66"),
            "not a reply": asked.query.to_wire(),
            "no DNS message": b"\x00" * 5,
            "cut off": genuine[:-3],
        }

    @pytest.mark.parametrize(
        "kind", ["another identifier", "another question", "not a reply", "no DNS message", "cut off"]
    )
    async def test_a_forged_reply_is_passed_over(self, kind: str) -> None:
        async def script(asked: Asked) -> list[bytes]:
            return [self.forged(asked)[kind], *await both_families(asked)]

        async with resolving(script) as its:
            assert await its.addresses() == (IPV4,)


class TestFamilies:
    """A slow or broken family delays nobody and fails no name that the other family has."""

    @pytest.mark.parametrize(
        "broken",
        [
            silence,
            refusing(dns.rcode.SERVFAIL),
            refusing(dns.rcode.NOERROR),
            refusing(dns.rcode.NXDOMAIN),  # RFC 4074 section 4.2
        ],
        ids=["silent", "failing", "without addresses", "denied"],
    )
    @pytest.mark.parametrize("family", ["ipv4", "ipv6"])
    async def test_one_family_is_enough(self, broken: Script, family: str) -> None:
        scripts = {"ipv4": both_families, "ipv6": both_families} | {family: broken}
        async with resolving(by_family(**scripts), family="both") as its:
            assert ((IPV6,) if family == "ipv4" else (IPV4,)) == await its.addresses()

    async def test_a_late_family_is_added_to_the_answer(self) -> None:
        """Who asked went on without it; who asks later has both, for as long as the answer lives."""
        release = asyncio.Event()

        async def late(asked: Asked) -> list[bytes]:
            await release.wait()
            return await both_families(asked)

        async with resolving(by_family(ipv4=both_families, ipv6=late), family="both") as its:
            assert await its.addresses() == (IPV4,)
            release.set()
            await until(lambda: its.in_memory() == (IPV6, IPV4))
            its.clock.now += 60
            assert its.resolver.cached(NAME) is None

    async def test_who_has_no_use_for_the_first_family_can_wait_for_the_other(self) -> None:
        """Its addresses may all be forbidden. That holds however short the answer lives."""
        release = asyncio.Event()

        async def early(asked: Asked) -> list[bytes]:
            return [asked.reply(f"{NAME}. 0 AAAA {IPV6}")]

        async def late(asked: Asked) -> list[bytes]:
            await release.wait()
            return [asked.reply(f"{NAME}. 0 A {IPV4}")]

        async with resolving(by_family(ipv4=late, ipv6=early), family="both", min_ttl=0) as its:
            answer = await its.resolver.resolve(NAME)
            waiting = asyncio.create_task(its.resolver.complete(NAME, answer))
            release.set()
            assert (answer.addresses, (await waiting).addresses) == ((IPV6,), (IPV6, IPV4))
            assert await its.resolver.complete(NAME, answer) is answer, "nothing is late any more"

    async def test_it_waits_in_vain_where_the_other_family_fails(self) -> None:
        async with resolving(by_family(ipv4=silence, ipv6=both_families), family="both", timeout=IMPATIENT) as its:
            answer = await its.resolver.resolve(NAME)
            assert (await its.resolver.complete(NAME, answer)).addresses == (IPV6,)

    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            (refusing(dns.rcode.NXDOMAIN), silence, FailureKind.NXDOMAIN),
            (refusing(dns.rcode.NXDOMAIN), refusing(dns.rcode.SERVFAIL), FailureKind.NXDOMAIN),
            (refusing(dns.rcode.NOERROR), silence, FailureKind.TIMEOUT),
            (refusing(dns.rcode.NOERROR), refusing(dns.rcode.SERVFAIL), FailureKind.FAILED),
            (refusing(dns.rcode.NOERROR), refusing(dns.rcode.NOERROR), FailureKind.NXDOMAIN),
            (silence, silence, FailureKind.TIMEOUT),
        ],
        ids=[
            "a denial of the name holds for both families (silence)",
            "a denial of the name holds for both families (failure)",
            "no addresses of one family do not tell of the silent one",
            "no addresses of one family do not tell of the failing one",
            "no addresses of either",
            "no reply for either",
        ],
    )
    async def test_when_neither_has_addresses(self, one: Script, other: Script, expected: FailureKind) -> None:
        for script in (by_family(ipv4=one, ipv6=other), by_family(ipv4=other, ipv6=one)):
            async with resolving(script, family="both", timeout=IMPATIENT) as its:
                assert expected is (await its.failure()).kind


class TestServers:
    """Several name servers, some of them broken."""

    @pytest.mark.parametrize(
        "broken",
        [silence, refusing(dns.rcode.SERVFAIL), refusing(dns.rcode.REFUSED), refusing(dns.rcode.NOTIMP)],
        ids=["silent", "SERVFAIL", "REFUSED", "NOTIMP"],
    )
    async def test_the_next_server_is_asked(self, broken: Script) -> None:
        async with (
            scripted_server(broken) as first,
            resolving(both_families, first.address, timeout=1.0) as its,
        ):
            assert await its.addresses() == (IPV4,)

    async def test_a_server_that_is_not_there_is_passed_at_once(self) -> None:
        """The kernel reports that nothing listens; no timeout is waited for."""
        async with resolving(both_families, f"127.0.0.1:{unused_port()}", timeout=3600) as its:
            assert await its.addresses() == (IPV4,)

    async def test_a_denial_of_the_first_server_stands(self) -> None:
        async with (
            scripted_server(refusing(dns.rcode.NXDOMAIN)) as first,
            resolving(both_families, first.address) as its,
        ):
            assert FailureKind.NXDOMAIN is (await its.failure()).kind
            assert its.server.asked == []

    async def test_a_lost_question_is_asked_again(self) -> None:
        async with resolving(in_turn(silence, both_families), timeout=1.0) as its:
            assert await its.addresses() == (IPV4,)
            assert its.server.questions() == [("A", "udp")] * 2

    async def test_a_slow_reply_is_taken_although_the_question_was_asked_again(self) -> None:
        """A recursive server that needs a second must not be punished by asking from a new socket."""
        asked_again = asyncio.Event()

        async def slow(asked: Asked) -> list[bytes]:
            await asked_again.wait()
            return await both_families(asked)

        async def again(_asked: Asked) -> list[bytes]:
            asked_again.set()
            return []

        async with resolving(in_turn(slow, again), timeout=2.0) as its:
            assert await its.addresses() == (IPV4,)

    async def test_the_second_question_does_without_edns(self) -> None:
        async with resolving(refusing(dns.rcode.FORMERR)) as its:
            await its.failure()
            assert [(asked.query.edns, asked.query.payload) for asked in its.server.asked] == [(0, 1232), (-1, 0)]

    async def test_silence_is_a_timeout(self) -> None:
        async with resolving(silence, timeout=IMPATIENT) as its:
            failure = await its.failure()
            assert (failure.kind, failure.detail) == (FailureKind.TIMEOUT, "no answer within 0.4 s")

    async def test_a_failure_names_the_servers_that_failed(self) -> None:
        async with (
            scripted_server(refusing(dns.rcode.REFUSED)) as first,
            resolving(refusing(dns.rcode.SERVFAIL), first.address) as its,
        ):
            failure = await its.failure()
            expected = f"{first.address} answered REFUSED; {its.server.address} answered SERVFAIL"
            assert (FailureKind.FAILED, expected) == (failure.kind, failure.detail)

    async def test_a_connection_that_ends_early_is_a_failure(self) -> None:
        async def script(asked: Asked) -> list[bytes]:
            return [asked.truncated()] if asked.transport == "udp" else []

        async with resolving(script) as its:
            failure = await its.failure()
            assert (FailureKind.FAILED, f"{its.server.address}: the connection ended too early") == (
                failure.kind,
                failure.detail,
            )


def with_ttl(ttl: int) -> Script:
    return always(lambda asked: asked.reply(f"{asked.name}. {ttl} A {IPV4}"))


class TestTimeToLive:
    """For how long an outcome is remembered."""

    @pytest.mark.parametrize(
        ("case", "script", "expected"),
        [
            ("an answer lives as long as it says", with_ttl(60), 60),
            ("but not less than min_ttl", with_ttl(0), 1),
            ("nor more than max_ttl", with_ttl(86400), 300),
            ("a denial lives for negative_ttl", refusing(dns.rcode.NXDOMAIN), 5),
            ("a shorter minimum of the SOA counts", refusing(dns.rcode.NXDOMAIN, SOA.format(ttl=60, minimum=2)), 2),
            ("a shorter life of the SOA counts", refusing(dns.rcode.NXDOMAIN, SOA.format(ttl=3, minimum=60)), 3),
            ("a longer SOA does not", refusing(dns.rcode.NOERROR, SOA.format(ttl=900, minimum=900)), 5),
            ("a failure is held for a second", refusing(dns.rcode.SERVFAIL), FAILURE_TTL),
        ],
    )  # fmt: skip
    async def test_remembered_for(self, case: str, script: Script, expected: float) -> None:
        async with resolving(script) as its:
            await asyncio.gather(its.resolver.resolve(NAME), return_exceptions=True)
            asked = len(its.server.asked)
            its.clock.now += expected - 0.001
            await asyncio.gather(its.resolver.resolve(NAME), return_exceptions=True)
            assert asked == len(its.server.asked), case
            its.clock.now += 0.001
            await asyncio.gather(its.resolver.resolve(NAME), return_exceptions=True)
            assert asked < len(its.server.asked), case

    async def test_a_changed_record_is_seen_when_the_old_one_expires(self) -> None:
        moved = always(lambda asked: asked.reply(f"{asked.name}. 60 A 192.0.2.2"))
        async with resolving(in_turn(both_families, moved)) as its:
            before = await its.addresses()
            its.clock.now += 60
            assert (before, await its.addresses()) == ((IPV4,), ("192.0.2.2",))

    async def test_a_failure_in_memory_is_raised_without_a_lookup(self) -> None:
        async with resolving(refusing(dns.rcode.NXDOMAIN)) as its:
            first = await its.failure()
            with pytest.raises(ResolutionError) as caught:
                its.resolver.cached(NAME)
            assert (str(first), 1) == (str(caught.value), len(its.server.asked))


class TestAskers:
    """Many connections, few lookups."""

    async def test_concurrent_askers_share_one_lookup(self) -> None:
        async with resolving(both_families) as its:
            answers = await asyncio.gather(*(its.resolver.resolve(NAME) for _ in range(50)))
            assert ({(IPV4,)}, 1) == ({answer.addresses for answer in answers}, len(its.server.asked))

    async def test_an_asker_that_gives_up_leaves_the_lookup_to_the_others(self) -> None:
        asked = asyncio.Event()
        release = asyncio.Event()

        async def script(question: Asked) -> list[bytes]:
            asked.set()
            await release.wait()
            return await both_families(question)

        async with resolving(script) as its:
            first, second = (asyncio.create_task(its.resolver.resolve(NAME)) for _ in range(2))
            await asked.wait()
            first.cancel()
            await asyncio.wait([first])
            release.set()
            assert ((await second).addresses, first.cancelled()) == ((IPV4,), True)

    async def test_the_last_asker_that_gives_up_leaves_the_answer_to_the_cache(self) -> None:
        asked = asyncio.Event()
        release = asyncio.Event()

        async def script(question: Asked) -> list[bytes]:
            asked.set()
            await release.wait()
            return await both_families(question)

        async with resolving(script) as its:
            only = asyncio.create_task(its.resolver.resolve(NAME))
            await asked.wait()
            only.cancel()
            await asyncio.wait([only])
            release.set()
            await until(lambda: its.resolver.cached(NAME) is not None)
            assert await its.addresses() == (IPV4,)

    async def test_lookups_under_way_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One more name is refused at once, and not remembered as failed; who joins a lookup is not refused."""
        monkeypatch.setattr(resolver_module, "MAX_LOOKUPS", 1)
        release = asyncio.Event()

        async def script(asked: Asked) -> list[bytes]:
            await release.wait()
            return await both_families(asked)

        async with resolving(script) as its:
            first, joining = (asyncio.create_task(its.resolver.resolve(NAME)) for _ in range(2))
            await until(lambda: bool(its.server.asked))
            failure = await its.failure(OTHER)
            assert (failure.kind, failure.detail) == (FailureKind.FAILED, "1 lookups are under way")
            release.set()
            assert [answer.addresses for answer in await asyncio.gather(first, joining)] == [(IPV4,), (IPV4,)]
            assert await its.addresses(OTHER) == (IPV4,)

    async def test_questions_wait_for_one_of_the_sockets_that_there_are(self) -> None:
        """They take no others, and every one has its turn."""
        under_way = most = 0
        release = asyncio.Event()

        async def script(asked: Asked) -> list[bytes]:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await release.wait()
            under_way -= 1
            return await both_families(asked)

        async with resolving(script, family="both", sockets=3) as its:
            names = [ServerName(f"n{number}.test") for number in range(20)]
            lookups = asyncio.gather(*map(its.addresses, names))
            await until(lambda: under_way >= 3)
            release.set()
            assert len(await lookups) == 20
        assert most <= 3

    async def test_nobody_asks_again_while_others_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that nobody answers for takes one socket; the next one that is free is for who has not asked yet."""
        waits = 0

        def stagger(_: Nameservers) -> float:
            nonlocal waits
            waits += 1
            return 0.001

        monkeypatch.setattr(Nameservers, "_stagger", property(stagger))
        third, release = ServerName("third.test"), asyncio.Event()

        async def held(asked: Asked) -> list[bytes]:
            await release.wait()
            return await both_families(asked)

        async with resolving(by_name({NAME: silence, OTHER: held}, both_families), sockets=2) as its:
            lookups = [asyncio.create_task(its.resolver.resolve(name)) for name in (NAME, OTHER)]
            await until(lambda: its.server.names() == {NAME, OTHER} and waits > 20)
            lookups.append(asyncio.create_task(its.resolver.resolve(third)))
            await turns()
            release.set()
            await asyncio.wait(lookups[1:])
            assert [asked.name for asked in its.server.asked][:3] == [NAME, OTHER, third]

    async def test_a_question_whose_turn_never_comes_says_so(self) -> None:
        async with resolving(silence, sockets=1, timeout=IMPATIENT) as its:
            first = asyncio.create_task(its.failure())
            await until(lambda: bool(its.server.asked))
            failure = await its.failure(OTHER)
            assert "no answer within 0.4 s; all 1 sockets for questions were in use" == failure.detail
            assert "no answer within 0.4 s" == (await first).detail

    async def test_the_cache_is_bounded(self) -> None:
        async with resolving(both_families, cache_size=1) as its:
            await its.addresses(NAME)
            await its.addresses(OTHER)
            assert its.resolver.cached(NAME) is None

    async def test_close_ends_what_is_under_way(self) -> None:
        async with resolving(silence) as its:
            asker = asyncio.create_task(its.resolver.resolve(NAME))
            await until(lambda: bool(its.server.asked))
            await its.resolver.close()
            await asyncio.wait([asker])
            assert asker.cancelled()

    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    async def test_wherever_it_is(self, transport: str) -> None:
        """No socket is left, however far a question has come when it ends."""
        script = silence if transport == "udp" else by_tcp(silence)
        async with scripted_server(script) as server:
            before = open_descriptors()
            for count in range(30):
                resolver = Resolver(ResolverConfig(nameservers=(parse_endpoint(server.address),), timeout=PATIENT))
                asker = asyncio.create_task(resolver.resolve(NAME))
                await turns(count)
                await resolver.close()
                asker.cancel()
                await asyncio.wait([asker])
            await until(lambda: open_descriptors() <= before)


DOWN = refusing(dns.rcode.SERVFAIL)


class TestStale:
    """With `stale_ttl`, an expired answer serves while no name server replies (RFC 8767)."""

    async def test_an_expired_answer_serves_while_the_servers_are_down(self) -> None:
        async with resolving(both_families, stale_ttl=600) as its:
            await its.addresses()
            its.server.script = DOWN
            its.clock.now += 61
            assert await its.addresses() == (IPV4,)

    async def test_only_the_first_asker_waits_for_the_servers_to_fail(self) -> None:
        """Until the recheck the others get the answer from memory; the recheck goes on behind their backs."""
        async with resolving(both_families, stale_ttl=600) as its:
            await its.addresses()
            its.server.script = DOWN
            its.clock.now += 61
            await its.addresses()
            asked = len(its.server.asked)
            its.clock.now += STALE_RECHECK - 1
            assert ((IPV4,), asked) == (await its.addresses(), len(its.server.asked))

            its.server.script = both_families
            its.clock.now += 1
            stale = its.resolver.cached(NAME)
            await until(lambda: its.observed.events[-1].startswith("lookup"))
            assert stale is not None
            assert ((IPV4,), asked + 1) == (stale.addresses, len(its.server.asked))
            its.clock.now += 59
            assert await its.addresses() == (IPV4,)

    async def test_an_expired_answer_serves_for_stale_ttl_at_most(self) -> None:
        async with resolving(both_families, stale_ttl=600) as its:
            await its.addresses()
            its.server.script = DOWN
            its.clock.now += 660
            assert FailureKind.FAILED is (await its.failure()).kind

    async def test_without_stale_ttl_it_never_serves(self) -> None:
        async with resolving(both_families) as its:
            await its.addresses()
            its.server.script = DOWN
            its.clock.now += 61
            assert FailureKind.FAILED is (await its.failure()).kind

    async def test_a_name_that_is_gone_is_gone(self) -> None:
        """A live server that denies the name beats any memory."""
        async with resolving(both_families, stale_ttl=600) as its:
            await its.addresses()
            its.server.script = refusing(dns.rcode.NXDOMAIN)
            its.clock.now += 61
            assert FailureKind.NXDOMAIN is (await its.failure()).kind


class TestObserver:
    """What the metrics are told."""

    async def test_misses_lookups_and_hits(self) -> None:
        async with resolving(both_families) as its:
            await its.addresses()
            await its.addresses()
            its.resolver.cached(NAME)
            its.resolver.cached(OTHER)
            assert its.observed.events == ["miss", "lookup ok in 0 s", "hit", "hit"]

    @pytest.mark.parametrize(
        ("script", "result"),
        [
            (silence, "timeout"),
            (refusing(dns.rcode.NXDOMAIN), "nxdomain"),
            (refusing(dns.rcode.SERVFAIL), "failed"),
        ],
        ids=["silence", "a denial", "a failure"],
    )
    async def test_what_a_lookup_came_to(self, script: Script, result: str) -> None:
        async with resolving(script, timeout=IMPATIENT) as its:
            await its.failure()
            assert ["miss", f"lookup {result} in 0 s"] == its.observed.events

    async def test_stale_answers(self) -> None:
        async with resolving(both_families, stale_ttl=600) as its:
            await its.addresses()
            its.server.script = refusing(dns.rcode.SERVFAIL)
            its.clock.now += 61
            await its.addresses()
            await its.addresses()
            expected = ["miss", "lookup ok in 0 s", "miss", "lookup failed in 0 s", "stale", "stale"]
            assert expected == its.observed.events


@pytest.mark.e2e
@pytest.mark.usefixtures("patience")
class TestDnsmasq:
    """A real name server."""

    RECORDS = (
        "local=/test/",
        f"host-record=www.test,{IPV4},{IPV6},77",
        "cname=alias.test,www.test",
        *(f"host-record=many.test,198.18.0.{host}" for host in range(1, 101)),
    )

    @staticmethod
    async def story(nameserver: str) -> dict[str, object]:
        resolver = Resolver(ResolverConfig(nameservers=(parse_endpoint(nameserver),), timeout=PATIENT))

        async def outcome(name: str) -> object:
            try:
                answer = await resolver.resolve(ServerName(name))
            except ResolutionError as error:
                return error.kind
            return answer.addresses

        many = await resolver.resolve(ServerName("many.test"))
        return {
            "a name of both families": await outcome("www.test"),
            "its time to live": (await resolver.resolve(NAME)).ttl,
            "an alias": await outcome("alias.test"),
            "an answer too long for UDP": len(many.addresses),
            "a name that does not exist": await outcome("missing.test"),
            "a name of others": await outcome("www.example.com"),
        }

    EXPECTED: ClassVar[dict[str, object]] = {
        "a name of both families": (IPV6, IPV4),
        "its time to live": 77,
        "an alias": (IPV6, IPV4),
        "an answer too long for UDP": MAX_ADDRESSES,
        "a name that does not exist": FailureKind.NXDOMAIN,
        "a name of others": FailureKind.FAILED,
    }

    async def test_every_kind_of_answer(self) -> None:
        with dnsmasq(*self.RECORDS) as nameserver:
            assert await self.story(nameserver) == self.EXPECTED
