"""Policy files: our own rules and Istio's documents, read into one rulebook.

A file holds one document or several. Those with an `apiVersion` are Istio's, and `istio` reads them; the others are in
our own format, which is read here. Every problem of every file is reported at once, and nothing is returned unless all
of it is right. What is right but doubtful is a warning.

Rules of the own format stand before Istio's, and those of the command line before them; else they keep the order of
files, documents and lines.
"""

import contextlib
import gc
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sniproxy.config.fields import Notes, TooMuchError, Value, parse_text
from sniproxy.config.model import Policy, PolicyFile, RequireMatch
from sniproxy.config.units import Network, parse_name_pattern, parse_namespace, parse_network, show
from sniproxy.config.yaml_source import BadInputError, Node, Problem, each_document, printable
from sniproxy.policy.istio import IstioDocuments
from sniproxy.policy.lint import lint
from sniproxy.policy.match import parse_identity_pattern
from sniproxy.policy.model import (
    Action,
    Attribute,
    Condition,
    EchPolicy,
    Ground,
    OuterSni,
    Per,
    Rule,
    Rulebook,
    RuleLimits,
)

# What all rules together may ask for. Aliases, and lists of Istio's that multiply, make much of small files; with this
# bound, the worst of them takes 1.5 GB and half a minute to read, and 100,000 rules as people write them a fifth of it.
MAX_ENTRIES = 10_000_000


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A rulebook, what is doubtful about the files it came from, and what in them decides nothing here."""

    rulebook: Rulebook
    warnings: tuple[Problem, ...] = ()
    ignored: tuple[str, ...] = ()


def load_policy(
    policy: Policy, files: Sequence[tuple[Path, PolicyFile]], extra: Sequence[Rule] = (), *, port: int = 443
) -> LoadedPolicy:
    """The rules of all files, behind the `extra` ones of the command line. Raises BadInputError.

    `port` is the one that will be dialled: a warning says which rules ask for another.
    """
    with _collector_paused():
        reading = _Reading(policy)
        for rule in extra:
            reading.add_rule(rule)
        for path, entry in files:
            reading.add_file(path, entry)
        return reading.finish(port)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """A large policy is millions of objects, none in a cycle, which the collector would visit again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Reading:
    """What the documents read so far have said, and what was wrong with them."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._notes = Notes()
        self._own: list[Rule] = []
        self._istio: list[Rule] = []
        self._entries = 0
        self._grounds: dict[str, Ground] = {}
        self._default: Ground | None = None
        self._documents = IstioDocuments(policy.gateway, self._notes, self._keep_istio)

    def finish(self, port: int) -> LoadedPolicy:
        if self._notes.problems:
            raise BadInputError(self._notes.problems)
        policy = self._policy
        rulebook = Rulebook(
            rules=(*self._own, *self._istio),
            default=Action(self._default.rule) if self._default else Action.DENY,
            monitor=policy.mode == "monitor",
            require_identity=policy.require_identity,
            ech=EchPolicy(policy.ech),
            outer_sni=_outer_sni(policy),
            registry_only=policy.registry == "only",
        )
        for problem in lint(rulebook, port):
            self._notes.warn(problem.file, problem.line, problem.message)
        warnings = sorted(set(self._notes.warnings), key=lambda problem: (problem.file, problem.line, problem.message))
        return LoadedPolicy(rulebook, tuple(warnings), self._documents.ignored())

    def add_file(self, path: Path, entry: PolicyFile) -> None:
        is_empty = True
        try:
            for node in each_document(path):
                is_empty = False
                self._add_document(node, path, entry)
        except TooMuchError:
            raise
        except BadInputError as error:
            self._notes.problems += error.problems
            return
        if is_empty:
            self._notes.problem(str(path), 1, "has no rules; write some, or drop the file")

    def _add_document(self, node: Node, path: Path, entry: PolicyFile) -> None:
        document = Value.of_document(node, str(path), self._notes)
        if not isinstance(node.value, dict):
            document.refuse(f"must hold keys with values, like `key: value`, not {show(node.value)}")
        elif "apiVersion" in node.value or "kind" in node.value:
            self._documents.add(document, entry.namespace)
        else:
            self._add_own(document, printable(path.name))

    def _add_own(self, document: Value, name: str) -> None:
        fields = document.keys(("default", "rules"))
        if "default" in fields:
            self._set_default(fields["default"])
        if "rules" in fields:
            for value in fields["rules"].items():
                rule = _rule(value, name)
                if rule is not None:
                    self.add_rule(rule)

    def add_rule(self, rule: Rule) -> None:
        ground = rule.ground
        first = self._grounds.setdefault(ground.rule, ground)
        if first is not ground:
            message = f"rule '{ground.rule}' has the name of the one at {first.file}:{first.line}; rename one"
            self._notes.problem(ground.file, ground.line, message)
        self._count(rule)
        self._own.append(rule)

    def _keep_istio(self, rule: Rule, is_in_force: bool) -> None:
        self._count(rule)
        if is_in_force:
            self._istio.append(rule)

    def _count(self, rule: Rule) -> None:
        self._entries += _entries(rule)
        if self._entries > MAX_ENTRIES:
            ground = rule.ground
            message = f"the rules stand for more than {MAX_ENTRIES:,} values; use fewer, shorter lists and no aliases"
            self._notes.stop(ground.file, ground.line, message)

    def _set_default(self, value: Value) -> None:
        action = value.choice("allow", "deny")
        if not action:
            return
        if self._default is None:
            self._default = Ground("default", action, value.file, value.line)
        elif self._default.rule != action:
            other = f"{self._default.file}:{self._default.line}"
            message = f"default: {action} disagrees with the default at {other}; keep one"
            self._notes.problem(value.file, value.line, message)


def _entries(rule: Rule) -> int:
    """What a rule takes of the whole, counted in values."""
    conditions = [condition for clause in rule.clauses for condition in clause]
    values = sum([len(condition.values) + len(condition.not_values) for condition in conditions])
    return 20 + len(rule.clauses) + len(conditions) + values


def _outer_sni(policy: Policy) -> OuterSni:
    if isinstance(policy.outer_sni, RequireMatch):
        return OuterSni(patterns=policy.outer_sni.require_match)
    return OuterSni(must_equal=policy.outer_sni == "require_equal")


def _name(value: object) -> str:
    return parse_name_pattern(parse_text(value))


def _identity(value: object) -> str:
    return parse_identity_pattern(parse_text(value))


def _namespace(value: object) -> str:
    return "*" if value == "*" else parse_namespace(value)


def _network(value: object) -> str:
    return str(parse_network(value))


def _rate(value: object) -> float:
    """New connections a second."""
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or not int(match[1]):
        raise ValueError(f"{show(value)} is no rate; write how many a second, minute or hour: 5/s, 30/m, 500/h")
    return int(match[1]) / {"s": 1, "m": 60, "h": 3600}[match[2]]


_RATE = re.compile(r"([0-9]{1,7})/([smh])")


def _rule_name(value: object) -> str:
    if not isinstance(value, str) or not _RULE_NAME.fullmatch(value):
        raise ValueError(
            f"{show(value)} is no rule name; write 1 to 128 letters, digits, spaces and any of . : / @ + - _"
        )
    return value


# Names go into logs and metric labels.
_RULE_NAME = re.compile(r"[\w.:/@+ -]{1,128}")

# What a rule may ask for: the attribute, what reads an entry, and the keys of those that one must match and none may.
_CONDITIONS = (
    (Attribute.SNI, _name, "sni", "not_sni"),
    (Attribute.PRINCIPAL, _identity, "principals", "not_principals"),
    (Attribute.NAMESPACE, _namespace, "namespaces", "not_namespaces"),
    (Attribute.SOURCE_IP, _network, "source_ips", ""),
)
_RULE_KEYS = (
    "name",
    "action",
    "mode",
    *(key for _, _, *keys in _CONDITIONS for key in keys if key),
    "allow_networks",
    "limits",
)


def _rule(value: Value, policy: str) -> Rule | None:
    """The rule as it is written, or None where that is no rule at all."""
    fields = value.keys(_RULE_KEYS, required=("name", "action"))
    name = fields["name"].parsed(_rule_name) if "name" in fields else None
    action = fields["action"].choice("allow", "deny", "audit") if "action" in fields else ""
    mode = fields["mode"].choice("enforce", "monitor") if "mode" in fields else ""
    clause = tuple(_clause(fields))
    networks = _networks(fields["allow_networks"]) if "allow_networks" in fields else ()
    limits = _limits(fields["limits"]) if "limits" in fields else None
    _check_action(fields, action)
    if not name or not action:
        return None
    ground = Ground(policy, name, value.file, value.line)
    return Rule(ground, Action(action), (clause,), mode == "monitor", networks, limits)


def _networks(value: Value) -> tuple[Network, ...]:
    """Other than a condition, this list may be empty: it opens nothing then."""
    return value.each(parse_network, may_be_empty=True)


def _clause(fields: dict[str, Value]) -> Iterable[Condition]:
    for attribute, parse, key, not_key in _CONDITIONS:
        values = fields[key].each(parse) if key in fields else ()
        not_values = fields[not_key].each(parse) if not_key in fields else ()
        if values or not_values:
            yield Condition(attribute, values, not_values)


def _check_action(fields: dict[str, Value], action: str) -> None:
    """What a rule that allows nothing cannot have."""
    for key in ("allow_networks", "limits") if action in ("deny", "audit") else ():
        if key in fields:
            fields[key].refuse(f"is for allow rules, and this one has action {action}; drop it")
    if action == "audit" and "mode" in fields:
        fields["mode"].refuse("is for rules that decide, and this one has action audit; drop it")


def _limits(value: Value) -> RuleLimits:
    fields = value.keys(("connections", "rate", "burst", "per"))
    if not isinstance(value.node.value, dict):
        return RuleLimits()
    if not {"connections", "rate"} & value.node.value.keys():
        value.refuse("limits nothing; add connections: 100, or rate: 5/s")
    connections = fields["connections"].whole(1, _MOST) if "connections" in fields else 0
    rate = (fields["rate"].parsed(_rate) or 0.0) if "rate" in fields else 0.0
    burst = fields["burst"].whole(1, _MOST) if "burst" in fields else max(1, int(rate)) if rate else 0
    if "burst" in fields and "rate" not in value.node.value:
        fields["burst"].refuse("is how far a rate may be run ahead of, and there is none; add rate: 5/s")
    per = fields["per"].choice("rule", "principal") if "per" in fields else ""
    return RuleLimits(connections, rate, burst, Per(per or "rule"))


_MOST = 10_000_000
