"""Policy files: our own rule format, read into a rulebook.

A file holds one document or several. Every problem of every file is reported at once, and nothing is returned
unless all of it is right.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from sniproxy.config.load import validate
from sniproxy.config.model import Policy, Section
from sniproxy.config.units import AnyNetwork
from sniproxy.config.yaml_source import BadInputError, Node, Problem, read_documents
from sniproxy.policy.engine import EchPolicy, Rulebook
from sniproxy.policy.match import IdentityPattern, NamePattern, parse_identity_pattern, parse_name_pattern
from sniproxy.policy.model import Action, Ground, Rule


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} must be text; put it in quotes")
    return value


Names = Annotated[
    tuple[Annotated[NamePattern, PlainValidator(lambda value: parse_name_pattern(_text(value)))], ...],
    Field(min_length=1),
]
Identities = Annotated[
    tuple[Annotated[IdentityPattern, PlainValidator(lambda value: parse_identity_pattern(_text(value)))], ...],
    Field(min_length=1),
]
# A Kubernetes namespace is an RFC 1123 label.
Namespaces = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$")], ...],
    Field(min_length=1),
]
Networks = Annotated[tuple[AnyNetwork, ...], Field(min_length=1)]


class RuleDocument(Section):
    """One rule as it is written. The name goes into logs and metric labels, so it is short and printable."""

    name: Annotated[str, Field(pattern=r"^[\w.:/@+ -]{1,128}$")]
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


class PolicyDocument(Section):
    default: Literal["allow", "deny"] | None = None
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
            kind = node.value["kind"].value if "kind" in node.value else "document without a kind"
            line = node.line_of(("kind",))
            raise BadInputError([Problem(str(path), line, f"a {kind} is not read by this version; use our own rules")])
        document = validate(PolicyDocument, node, str(path))
        if document.default is not None:
            self._set_default(Action(document.default), str(path), node.line_of(("default",)))
        for number, written in enumerate(document.rules):
            ground = Ground(path.name, written.name, str(path), node.line_of(("rules", number)))
            self.add_rule(written.rule(ground))

    def add_rule(self, rule: Rule) -> None:
        ground = rule.ground
        first = self._names.setdefault(ground.rule, ground)
        if first is not ground:
            message = f"rule '{ground.rule}' has the name of the rule at {first.file}:{first.line}; rename one"
            self.problems.append(Problem(ground.file, ground.line, message))
        self.rules.append(rule)

    def _set_default(self, action: Action, file: str, line: int) -> None:
        if self._default is None:
            self._default = (action, file, line)
        elif self._default[0] is not action:
            _, other, other_line = self._default
            message = f"default: {action.value} disagrees with {other}:{other_line}; keep one"
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
