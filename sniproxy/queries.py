"""`sniproxy explain`: asks the policy what it would decide, one query or a file of them with the answers expected.

The policy is loaded as `run` loads it, and the engine that answers is the one that judges connections. What is asked is
what a connection would say of itself; the name checks, the destination guard and the limits come before and after, and
are not asked.
"""

import ipaddress
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sniproxy.config.fields import Notes, Value
from sniproxy.config.model import parse_principal_name
from sniproxy.config.units import parse_name, show
from sniproxy.config.yaml_source import BadInputError, Problem, printable, read_documents
from sniproxy.identity.spiffe import UNKNOWN, Identity
from sniproxy.outcome import Event, Reason
from sniproxy.policy.engine import Engine
from sniproxy.policy.explain import Explanation, explain
from sniproxy.policy.model import NO_GROUND, Decision, Denied, Ground, Request
from sniproxy.reload.generation import Loaded, Source, load

ALLOWED, NOT_AS_EXPECTED, DENIED = 0, 1, 3

_KEYS = ("sni", "principal", "source_ip", "outer_sni", "ech", "expect", "reason", "rule")
_REASONS = tuple(reason.word for reason in Reason if reason.event is Event.DENY)


def parse_identity(value: object) -> Identity:
    """A principal, or nobody. Raises ValueError."""
    if value in (None, "", "unknown"):
        return UNKNOWN
    return parse_principal_name(value)


def parse_source_ip(value: object) -> str:
    """An address as connections have it, or none. Raises ValueError."""
    if value in (None, ""):
        return ""
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError(f"{show(value)} is no IP address; write it as 10.1.2.3, in quotes") from None


class Policy:
    """The policy of a config, loaded to be asked. Raises BadInputError."""

    def __init__(self, config: Path | None) -> None:
        loaded: Loaded = load(Source(config))
        self.port = loaded.config.upstream.port
        self.engine = Engine.of(loaded.policy.rulebook)


class Answer(NamedTuple):
    """What to print, and the exit code."""

    text: str
    code: int


def explain_one(policy: Policy, request: Request, *, as_json: bool) -> Answer:
    """The decision about one request."""
    explanation = explain(policy.engine, request._replace(port=policy.port))
    text = _json(explanation.as_json()) if as_json else explanation.as_text()
    return Answer(text, DENIED if isinstance(explanation.decision, Denied) else ALLOWED)


def explain_file(policy: Policy, file: Path, *, as_json: bool) -> Answer:
    """The decision about every query of a file. Raises BadInputError."""
    queries = read_queries(file, policy.port)
    # The near misses take time with many rules, and the table does not show them.
    answer = explain if as_json else lambda engine, request: Explanation(engine.decide(request), ())
    answers = [(query, answer(policy.engine, query.request)) for query in queries]
    text = _json([_json_of(*each) for each in answers]) if as_json else "\n".join(_table(answers))
    is_good = all(query.is_met_by(explanation.decision) for query, explanation in answers)
    return Answer(text, ALLOWED if is_good else NOT_AS_EXPECTED)


@dataclass(frozen=True, slots=True)
class Query:
    """A request and the answer that is expected: "allow" or "deny", and for which reason and rule if not ""."""

    request: Request
    expect: str
    reason: str = ""
    rule: str = ""

    def is_met_by(self, decision: Decision) -> bool:
        if (self.expect == "deny") is not isinstance(decision, Denied):
            return False
        reason = decision.reason.word if isinstance(decision, Denied) else ""
        return self.reason in ("", reason) and self.rule in ("", decision.ground.rule, str(decision.ground))

    @property
    def who(self) -> str:
        source = f" from {self.request.source_ip}" if self.request.source_ip else ""
        return f"{self.request.identity}{source}"


def read_queries(file: Path, port: int) -> list[Query]:
    """The queries in a YAML list. Raises BadInputError with every problem, at its line."""
    documents = read_documents(file)
    if len(documents) != 1 or not documents[0].value:
        raise BadInputError([Problem(str(file), 1, "must hold one list of queries: - {sni: a.org, expect: deny}")])
    notes = Notes()
    queries = [_query(value, port) for value in Value.of_document(documents[0], str(file), notes).items()]
    if notes.problems:
        raise BadInputError(notes.problems)
    return [query for query in queries if query is not None]


def _query(value: Value, port: int) -> Query | None:
    fields = value.keys(_KEYS, required=("sni", "expect"), nullable=("principal", "source_ip", "outer_sni"))
    if not {"sni", "expect"} <= fields.keys():
        return None
    name = fields["sni"].parsed(parse_name)
    identity = fields["principal"].parsed(parse_identity) if "principal" in fields else UNKNOWN
    source_ip = fields["source_ip"].parsed(parse_source_ip) if "source_ip" in fields else ""
    outer_name = fields["outer_sni"].text() if "outer_sni" in fields else ""
    expect = fields["expect"].choice("allow", "deny")
    if name is None or identity is None or source_ip is None:
        return None
    request = Request(name, identity, source_ip, _flag(fields.get("ech")), outer_name, port)
    reason = fields["reason"].choice(*_REASONS) if "reason" in fields else ""
    return Query(request, expect, reason, fields["rule"].text() if "rule" in fields else "")


def _flag(value: Value | None) -> bool:
    if value is None:
        return False
    if not isinstance(value.node.value, bool):
        value.refuse(f"must be true or false, not {show(value.node.value)}")
    return value.node.value is True


# Printing.


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _json_of(query: Query, explanation: Explanation) -> dict[str, object]:
    request = query.request
    return {
        "sni": request.server_name,
        "principal": str(request.identity),
        "sourceIp": request.source_ip,
        "expect": query.expect,
        "asExpected": query.is_met_by(explanation.decision),
        **explanation.as_json(),
    }


class _Row(NamedTuple):
    who: str
    name: str
    expected: str
    got: str
    by: str


def _table(answers: Sequence[tuple[Query, Explanation]]) -> Iterator[str]:
    rows = [_Row("who", "name", "expected", "got", "by")]
    rows += [_row(query, explanation.decision) for query, explanation in answers]
    met = [query.is_met_by(explanation.decision) for query, explanation in answers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, mark in zip(rows, ["", *("" if is_met else "   <-- WRONG" for is_met in met)], strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{cells.rstrip()}{mark}"
    yield f"{sum(met)} of {len(met)} are as expected."


def _row(query: Query, decision: Decision) -> _Row:
    got = f"deny ({decision.reason.word})" if isinstance(decision, Denied) else "allow"
    wanted = f"{query.expect} ({query.reason})" if query.reason else query.expect
    if query.rule:
        wanted = f"{wanted} by {printable(query.rule)}"
    return _Row(query.who, query.request.server_name, wanted, got, _by(decision.ground))


def _by(ground: Ground) -> str:
    if ground == NO_GROUND:
        return "no rule"
    return f"{ground} {printable(ground.file)}:{ground.line}"
