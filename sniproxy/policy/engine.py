"""The engine: one decision about one request, from a compiled rulebook.

What a decision rests on is the first rule of each kind that holds, and `compiled` finds those. Which of them counts is
said here, in one place and in numbered order.
"""

from collections.abc import Iterator
from functools import lru_cache
from mmap import mmap
from socket import AF_INET, AF_INET6, inet_pton

from sniproxy.config.units import show
from sniproxy.identity.spiffe import UNKNOWN, Identity
from sniproxy.memo import Memo
from sniproxy.names import MAX_LENGTH, InvalidNameError, ServerName, parse_server_name
from sniproxy.outcome import Reason
from sniproxy.policy.compiled import Compiled, Found, compile_rulebook, number_of
from sniproxy.policy.index import (
    ALLOW,
    AUDIT,
    DENY,
    MONITORED_ALLOW,
    MONITORED_DENY,
    MONITORED_REGISTER,
    REGISTER,
)
from sniproxy.policy.match import check_of, passes
from sniproxy.policy.model import (
    NO_GROUND,
    Action,
    Allowed,
    Attribute,
    Decision,
    Denied,
    DryRun,
    EchPolicy,
    OuterSni,
    Permit,
    Request,
    Rule,
    Rulebook,
)

_REMEMBERED = 4096

# What a decision depends on: name, principal, port, source address, outer name, and whether there is ECH. What no rule
# asks for is left out, so that one decision stands for many requests.
_Question = tuple[ServerName, bytes, int, str, str, bool]


class Engine:
    """Decides by a compiled rulebook. Immutable: a new policy is a new engine.

    `compiled` is what `compile_rulebook` made, in whatever memory; raises BadRulebookError if it is something else.
    """

    def __init__(self, compiled: bytes | memoryview | mmap) -> None:
        rules = Compiled(compiled)
        judge = _Judge(rules)
        self.settings: Rulebook = rules.settings
        self.rule_count: int = rules.rule_count
        self._rules = rules
        self._asks_for_source = Attribute.SOURCE_IP in rules.asks
        self._asks_for_port = Attribute.PORT in rules.asks
        self._asks_for_outer = self.settings.outer_sni != OuterSni()
        self._denies_ech = self.settings.ech is EchPolicy.DENY
        self._decisions: Memo[_Question, Decision] = Memo(lambda question: judge.decide(*question), _REMEMBERED)

    @classmethod
    def of(cls, rulebook: Rulebook) -> "Engine":
        return cls(compile_rulebook(rulebook))

    def rules(self) -> Iterator[Rule]:
        """All rules in their order, each made when it is asked for."""
        return self._rules.rules()

    def decide(self, request: Request) -> Decision:
        """The decision about one connection; the same request gets the same one, and is remembered for a while."""
        return self.decision(*request)

    def decision(
        self, name: ServerName, identity: Identity, source_ip: str, ech: bool, outer_name: str, port: int
    ) -> Decision:
        """The same, of a request's fields, for who asks with each connection."""
        return self._decisions.of(
            (
                name,
                b"" if identity is UNKNOWN else identity.encoded,
                port if self._asks_for_port else 0,
                source_ip if self._asks_for_source else "",
                outer_name[: MAX_LENGTH + 2] if self._asks_for_outer else "",
                ech and self._denies_ech,
            )
        )


class _Judge:
    """What an engine decides with."""

    def __init__(self, rules: Compiled) -> None:
        book = rules.settings
        self._rules = rules
        self._first = rules.first
        self._book = book
        self._registry_only = book.registry_only
        self._patterns = tuple(check_of(Attribute.SNI, pattern) for pattern in book.outer_sni.patterns)
        self._has_preconditions = book.require_identity or book.ech is EchPolicy.DENY or book.outer_sni != OuterSni()
        self._imagines = book.monitor or not rules.kinds.isdisjoint(_MONITORED)
        self._has_allow = ALLOW in rules.kinds
        self._has_any_allow = self._has_allow or MONITORED_ALLOW in rules.kinds

    def decide(
        self,
        name: ServerName,
        principal: bytes,
        port: int,
        source_ip: str,
        outer_name: str,
        ech: bool,
    ) -> Decision:
        """The decision about a `_Question`.

        1. No identity, where one is required, denies.
        2. An encrypted ClientHello, where those are refused, denies: the name that we see is not the real one.
        3. A tunnel for another name than the outer SNI may be denies.
        4. With `registry: only`, a host that no rule registers for the caller is denied.
        5. The first deny rule that holds denies.
        6. The first allow rule that holds allows.
        7. With any allow rule in force, the rest is refused.
        8. With none, the default decides.

        Monitored rules do not count in this, and what would be if they did is noted where it is the opposite. In
        monitor mode nothing is refused here, and what would be is noted.
        """
        address = _address(source_ip) if source_ip else b""
        first = self._first(name.encode(), principal, address, _digits(port) if port else b"")
        refusal = self._refusal(name, principal, ech, outer_name) if self._has_preconditions else None
        decision = refusal or self._ruled(name, first[DENY], first[ALLOW], first[REGISTER], self._has_allow)
        if self._imagines:
            enforced = refusal or self._ruled(
                name,
                _former(first[DENY], first[MONITORED_DENY]),
                _former(first[ALLOW], first[MONITORED_ALLOW]),
                _former(first[REGISTER], first[MONITORED_REGISTER]),
                self._has_any_allow,
            )
            if self._book.monitor and isinstance(decision, Denied):
                decision = Allowed(Permit(name, ()), NO_GROUND)
            decision = decision._replace(dry_run=_difference(decision, enforced))
        if first[AUDIT] is not None:
            decision = decision._replace(audit=self._rules.ground(first[AUDIT]))
        return decision

    def _refusal(self, name: ServerName, principal: bytes, ech: bool, outer_name: str) -> Denied | None:
        """What denies before any rule: 1 to 3."""
        book = self._book
        if book.require_identity and not principal:
            return _refused(Reason.IDENTITY_REQUIRED, "policy.require_identity is on and the caller is unknown")
        if ech and book.ech is EchPolicy.DENY:
            return _refused(Reason.ECH, "policy.ech is deny and the hello has the ECH extension")
        if book.outer_sni.must_equal or self._patterns:
            return self._mismatch(name, outer_name)
        return None

    def _mismatch(self, name: ServerName, outer_name: str) -> Denied | None:
        outer = _parsed(outer_name)
        option = "require_equal" if self._book.outer_sni.must_equal else "require_match"
        if not outer:
            came = f"has {show(outer_name)} for its SNI, which is no host name" if outer_name else "has no SNI"
            sentence = f"policy.outer_sni is {option} and the tunnel {came}; the hello asks for {name}"
            return _refused(Reason.SNI_MISMATCH, sentence)
        if self._book.outer_sni.must_equal and outer != name:
            sentence = f"policy.outer_sni is require_equal and the tunnel is for {outer}; the hello asks for {name}"
            return _refused(Reason.SNI_MISMATCH, sentence)
        if self._patterns and not any(passes(pattern, outer.encode()) for pattern in self._patterns):
            sentence = (
                f"policy.outer_sni is require_match and the tunnel is for {outer}, which is not among its patterns; "
                f"the hello asks for {name}"
            )
            return _refused(Reason.SNI_MISMATCH, sentence)
        return None

    def _ruled(self, name: ServerName, deny: Found, allow: Found, register: Found, has_allow: bool) -> Decision:
        """What the first rules that hold decide: 4 to 8."""
        if self._registry_only and register is None:
            sentence = f"policy.registry is only and no ServiceEntry that the caller may see has {name}"
            return _refused(Reason.REGISTRY, sentence)
        if deny is not None:
            ground = self._rules.ground(deny)
            phrase = f"rbac_access_denied_matched_policy[{ground.policy}-rule[{ground.rule}]]"
            return Denied(Reason.RULE, ground, phrase)
        if allow is not None:
            ground, allow_networks, limits = self._rules.consequence(allow)
            return Allowed(Permit(name, allow_networks), ground, limits)
        if has_allow or self._book.default is not Action.ALLOW:
            return _BY_DEFAULT
        return Allowed(Permit(name, ()), NO_GROUND)


def _former(one: Found, other: Found) -> Found:
    """Of two rules, if there are two, the one that stands first."""
    if one is None or other is None:
        return one or other
    return min(one, other, key=number_of)


_MONITORED = {MONITORED_ALLOW, MONITORED_DENY, MONITORED_REGISTER}


def _refused(reason: Reason, detail: str) -> Denied:
    return Denied(reason, NO_GROUND, detail)


_BY_DEFAULT = _refused(Reason.DEFAULT, "rbac_access_denied_matched_policy[none]")


def _difference(decision: Decision, enforced: Decision) -> DryRun | None:
    """What would have been, where that is the opposite of what was."""
    if isinstance(decision, Denied) == isinstance(enforced, Denied):
        return None
    if isinstance(enforced, Denied):
        return DryRun(True, enforced.reason, enforced.ground)
    return DryRun(False, None, enforced.ground)


def _address(source_ip: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in source_ip else AF_INET, source_ip.partition("%")[0])


@lru_cache(maxsize=16)  # there is one, as a rule
def _digits(port: int) -> bytes:
    return b"%d" % port


def _parsed(outer_name: str) -> ServerName | None:
    try:
        return parse_server_name(outer_name.encode("utf-8", "surrogatepass"))
    except InvalidNameError:
        return None
