"""Why a request is decided as it is, and what was near to deciding otherwise.

The decision is the engine's own. A near miss is a rule that would have changed it, had it held: an allow rule where
none allowed, a deny rule where none denied, a registered host where none was. For those every rule is read, which
takes about a second for 100,000, so this is for people and not for connections.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sniproxy.identity.spiffe import namespaces_of
from sniproxy.outcome import Reason
from sniproxy.policy.engine import Engine
from sniproxy.policy.match import holds, principal_text
from sniproxy.policy.model import (
    NO_GROUND,
    Action,
    Attribute,
    Clause,
    Decision,
    Denied,
    DryRun,
    Ground,
    Request,
    Rule,
)

MAX_NEAR_MISSES = 10

_SHOWN_VALUES = 3  # of a condition, in a sentence
_SHOWN_LENGTH = 120  # of a value
_MONITORED = "the rule is in monitor mode, and is not enforced"


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that did not hold, and the sentences that say why."""

    ground: Ground
    lacked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    decision: Decision
    near_misses: tuple[NearMiss, ...]

    @property
    def verdict(self) -> str:
        return _verdict(isinstance(self.decision, Denied))

    def as_json(self) -> dict[str, object]:
        """What `--json` prints, and what the admin address answers."""
        decision = self.decision
        return {
            "verdict": self.verdict,
            "reason": decision.reason.word if isinstance(decision, Denied) else None,
            **_ground_fields(decision.ground),
            "dryRun": _dry_run_fields(decision.dry_run),
            "nearMisses": [{**_ground_fields(miss.ground), "lacked": list(miss.lacked)} for miss in self.near_misses],
        }

    def as_text(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        decision = self.decision
        if isinstance(decision, Denied):
            yield f"deny ({decision.reason.word}): {decision.detail}"
        else:
            yield "allow"
        yield f"  by {_shown(decision.ground)}"
        if decision.dry_run is not None:
            yield f"  with everything enforced: {_told(decision.dry_run)}, by {_shown(decision.dry_run.ground)}"
        if decision.audit is not None:
            yield f"  noted by {_shown(decision.audit)}"
        if self.near_misses:
            yield "near misses:"
        for miss in self.near_misses:
            yield f"  {_shown(miss.ground)}"
            yield from (f"    {sentence}" for sentence in miss.lacked)


def explain(engine: Engine, request: Request) -> Explanation:
    """The decision about a request, with the rules that would have changed it: those that lacked least, first."""
    decision = engine.decide(request)
    action = _what_would_change(engine, decision)
    misses = _near_misses(engine.rules(), action, request) if action else ()
    return Explanation(decision, tuple(misses))


def _what_would_change(engine: Engine, decision: Decision) -> Action | None:
    """The action of the rules that would change the verdict; in monitor mode, the verdict that would be."""
    reason = decision.reason if isinstance(decision, Denied) else None
    if engine.settings.monitor and decision.dry_run is not None:
        reason = decision.dry_run.reason
    if reason is None:
        return Action.DENY
    return {Reason.DEFAULT: Action.ALLOW, Reason.REGISTRY: Action.REGISTER}.get(reason)


class _Missed(NamedTuple):
    """How far a clause was from holding. The nearest sorts first, and of those the first in the rulebook."""

    lacked: int
    is_of_another_name: bool  # whoever asks why a name is refused looks for the rules that have it
    had: int  # negated: of two that lack one condition, the one that had more is nearer
    number: int
    rule: Rule
    failed: Clause


def _near_misses(rules: Iterable[Rule], action: Action, request: Request) -> list[NearMiss]:
    missed = (
        near
        for number, rule in enumerate(rules)
        if rule.action is action and (near := _nearest(number, rule, request)) is not None
    )
    nearest = heapq.nsmallest(MAX_NEAR_MISSES, missed, key=lambda near: near[:4])
    return [NearMiss(near.rule.ground, tuple(_lacked(near, request))) for near in nearest]


def _nearest(number: int, rule: Rule, request: Request) -> _Missed | None:
    """The clause of a rule that was nearest to holding; None where all have nothing in common with the request."""
    nearest = None
    for clause in rule.clauses:
        failed = tuple([condition for condition in clause if not holds(condition, request)])
        # All connections have the one port, and most callers are none of those left out: that says nothing.
        had = sum(bool(it.values) and it.attribute is not Attribute.PORT and it not in failed for it in clause)
        if had or len(failed) <= 1:
            is_of_another_name = any(condition.attribute is Attribute.SNI for condition in failed)
            missed = _Missed(len(failed) + rule.is_monitored, is_of_another_name, -had, number, rule, failed)
            nearest = missed if nearest is None else min(nearest, missed, key=lambda near: near[:3])
    return nearest


def _lacked(missed: _Missed, request: Request) -> Iterator[str]:
    if missed.rule.is_monitored:
        yield _MONITORED
    for condition in missed.failed:
        is_value = f"{condition.attribute.value} is {_value(condition.attribute, request)}"
        if not holds(condition._replace(not_values=()), request):
            yield f"{is_value}, and the rule asks for {_listed(condition.values)}"
        if not holds(condition._replace(values=()), request):
            yield f"{is_value}, and the rule leaves out {_listed(condition.not_values)}"


def _value(attribute: Attribute, request: Request) -> str:
    """What the request has. Absent is said in a word, which no value has."""
    match attribute:
        case Attribute.SNI:
            return request.server_name
        case Attribute.PRINCIPAL:
            return _short(principal_text(request)) or "unknown"
        case Attribute.NAMESPACE:
            return _short(" and ".join(namespaces_of(principal_text(request)))) or "unknown"
        case Attribute.SOURCE_IP:
            return request.source_ip or "unknown"
        case Attribute.PORT:
            return str(request.port)


def _listed(values: Sequence[str]) -> str:
    shown = [_short(value) for value in values[:_SHOWN_VALUES]]
    more = len(values) - len(shown)
    if more:
        return f"{', '.join(shown)} or {more} more"
    return " or ".join((", ".join(shown[:-1]), shown[-1])) if len(shown) > 1 else shown[0]


def _short(text: str) -> str:
    """A sentence stays a sentence, whatever a rule or a client has written."""
    printable = _printable(text)
    return printable if len(printable) <= _SHOWN_LENGTH else f"{printable[:_SHOWN_LENGTH]}..."


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def _verdict(is_denied: bool) -> str:
    return "deny" if is_denied else "allow"


def _ground_fields(ground: Ground) -> dict[str, object]:
    return {"policy": ground.policy, "rule": ground.rule, "file": ground.file, "line": ground.line}


def _dry_run_fields(dry_run: DryRun | None) -> dict[str, object] | None:
    if dry_run is None:
        return None
    reason = dry_run.reason.word if dry_run.reason else None
    return {"verdict": _verdict(dry_run.would_deny), "reason": reason, **_ground_fields(dry_run.ground)}


def _told(dry_run: DryRun) -> str:
    return f"deny ({dry_run.reason.word})" if dry_run.reason else "allow"


def _shown(ground: Ground) -> str:
    if ground == NO_GROUND:
        return "no rule"
    return _printable(f"rule {ground.rule} of {ground.policy} ({ground.file}:{ground.line})")
