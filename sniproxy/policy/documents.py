"""Policy files: our own rule format, read into a rulebook.

A file holds one document or several. Every problem of every file is reported at once, and nothing is returned
unless all of it is right.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from sniproxy.config.load import validate
from sniproxy.config.model import Policy, Section
from sniproxy.config.units import AnyNetwork, parse_namespace, show
from sniproxy.config.yaml_source import BadInputError, Node, Problem, printable, read_documents
from sniproxy.policy.engine import EchPolicy, Rulebook
from sniproxy.policy.match import IdentityPattern, NamePattern, parse_identity_pattern, parse_name_pattern
from sniproxy.policy.model import Action, Ground, Rule


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text; put it in quotes")
    return value


def _namespace_pattern(value: object) -> str:
    return "*" if value == "*" else parse_namespace(value)


def _rule_name(value: object) -> str:
    if not isinstance(value, str) or not _RULE_NAME.fullmatch(value):
        raise ValueError(
            f"{show(value)} is no rule name; write 1 to 128 letters, digits, spaces and any of . : / @ + - _"
        )
    return value


# Names go into logs and metric labels.
_RULE_NAME = re.compile(r"[\w.:/@+ -]{1,128}")


Names = Annotated[
    tuple[Annotated[NamePattern, PlainValidator(lambda value: parse_name_pattern(_text(value)))], ...],
    Field(min_length=1),
]
Identities = Annotated[
    tuple[Annotated[IdentityPattern, PlainValidator(lambda value: parse_identity_pattern(_text(value)))], ...],
    Field(min_length=1),
]
Namespaces = Annotated[tuple[Annotated[str, PlainValidator(_namespace_pattern)], ...], Field(min_length=1)]
Networks = Annotated[tuple[AnyNetwork, ...], Field(min_length=1)]


class RuleDocument(Section):
    """One rule as it is written."""

    name: Annotated[str, PlainValidator(_rule_name)]
    action: Literal["allow", "deny"]
    mode: Literal["enforce"] = "enforce"
    sni: Names = ()
    not_sni: Names = ()
    principals: Identities = ()
    not_principals: Identities = ()
    namespaces: Namespaces = ()
    not_namespaces: Namespaces = ()
    source_ips: Networks = ()
    allow_networks: tuple[AnyNetwork, ...] = ()

    def rule(self, ground: Ground) -> Rule:
        return Rule(
            ground=ground,
            action=Action(self.action),
            names=self.sni,
            not_names=self.not_sni,
            principals=self.principals,
            not_principals=self.not_principals,
            namespaces=self.namespaces,
            not_namespaces=self.not_namespaces,
            source_networks=self.source_ips,
            allow_networks=self.allow_networks,
        )


def _not_null(value: object) -> object:
    """A key without a value is a slip, and no default."""
    if value is None:
        raise ValueError("has no value")
    return value


class PolicyDocument(Section):
    default: Annotated[Literal["allow", "deny"] | None, BeforeValidator(_not_null)] = None
    rules: tuple[RuleDocument, ...] = ()


class _Reading:
    """What the documents read so far have said, and what was wrong with them."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.problems: list[Problem] = []
        self._names: dict[str, Ground] = {}
        self._default: tuple[Action, str, int] | None = None

    @property
    def default(self) -> Action:
        return self._default[0] if self._default else Action.DENY

    def add_file(self, path: Path) -> None:
        try:
            documents = read_documents(path)
        except BadInputError as error:
            self.problems += error.problems
            return
        if not documents:
            self.problems.append(Problem(str(path), 1, "has no rules; write some, or drop the file"))
        for node in documents:
            try:
                self._add_document(node, path)
            except BadInputError as error:
                self.problems += error.problems

    def _add_document(self, node: Node, path: Path) -> None:
        if isinstance(node.value, dict) and "apiVersion" in node.value:
            kind = show(node.value["kind"].plain()) if "kind" in node.value else "nothing"
            message = f"this version reads no Kubernetes documents, and this one is of kind {kind}; write our own rules"
            raise BadInputError([Problem(str(path), node.line_of(("kind",)), message)])
        document = validate(PolicyDocument, node, str(path))
        if document.default is not None:
            self._set_default(Action(document.default), str(path), node.line_of(("default",)))
        for number, written in enumerate(document.rules):
            ground = Ground(printable(path.name), written.name, str(path), node.line_of(("rules", number)))
            self.add_rule(written.rule(ground))

    def add_rule(self, rule: Rule) -> None:
        ground = rule.ground
        first = self._names.setdefault(ground.rule, ground)
        if first is not ground:
            message = f"rule '{ground.rule}' has the name of the one at {first.file}:{first.line}; rename one"
            self.problems.append(Problem(ground.file, ground.line, message))
        self.rules.append(rule)

    def _set_default(self, action: Action, file: str, line: int) -> None:
        if self._default is None:
            self._default = (action, file, line)
        elif self._default[0] is not action:
            _, other, other_line = self._default
            message = f"default: {action.value} disagrees with the default at {other}:{other_line}; keep one"
            self.problems.append(Problem(file, line, message))


def load_rulebook(policy: Policy, paths: Iterable[Path], extra: Sequence[Rule] = ()) -> Rulebook:
    """The rules of all files, behind the `extra` ones of the command line. Raises BadInputError."""
    reading = _Reading()
    for rule in extra:
        reading.add_rule(rule)
    for path in paths:
        reading.add_file(path)
    if reading.problems:
        raise BadInputError(reading.problems)
    return Rulebook(tuple(reading.rules), reading.default, policy.require_identity, EchPolicy(policy.ech))
