"""What the three policy targets share: load a file, and ask the engine what it decides, and a plain evaluator too."""

import json
from collections.abc import Iterator

from sniproxy.config.fields import MAX_NOTES
from sniproxy.config.model import Gateway, Policy, PolicyFile
from sniproxy.config.yaml_source import BadInputError
from sniproxy.identity.spiffe import UNKNOWN, Identity, InvalidSpiffeIdError, parse_principal
from sniproxy.names import InvalidNameError, ServerName, parse_server_name
from sniproxy.policy.documents import LoadedPolicy, load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.explain import explain
from sniproxy.policy.model import Attribute, Request, Rule, Rulebook
from tests.fuzz.files import check_error, check_problem, file_of
from tests.policy import plain

_MOST_RULES = 50  # that are asked, and values of a rule
_MOST_REQUESTS = 6
_NAMES = (b"en.wikipedia.org", b"a.b.example")
_CALLERS = ("cluster.local/ns/default/sa/sleep", "td/ns/otherns/x")


def check_policy(data: bytes, policy: Policy) -> LoadedPolicy | None:
    """Load a file with these bytes, and hold what comes of it to what it promises."""
    with file_of(data, "policy.yaml") as path:
        try:
            loaded = load_policy(policy, [(path, PolicyFile(path=str(path)))])
        except BadInputError as error:
            check_error(error, data)
            assert len(error.problems) <= MAX_NOTES + 1
            return None
    assert len(loaded.warnings) <= 3 * MAX_NOTES
    for warning in loaded.warnings:
        check_problem(warning, data)
    _check_decisions(loaded.rulebook)
    return loaded


GATEWAY = Gateway(namespace="istio-system", labels={"app": "gateway", "istio": "egressgateway"})


def _check_decisions(book: Rulebook) -> None:
    """A rulebook that loaded compiles, reads back the same, and is decided by as it says in plain words."""
    engine = Engine.of(book)
    assert tuple(engine.rules()) == book.rules
    is_small = len(book.rules) <= _MOST_RULES and all(map(_is_plain, book.rules))
    for request in _requests(book):
        decision = engine.decide(request)
        if is_small:
            assert plain.told(decision) == plain.decided(book, request)
            explanation = explain(engine, request)
            assert explanation.decision == decision
            assert all(line.isprintable() for line in explanation.as_text().split("\n"))
            json.dumps(explanation.as_json())


def _is_plain(rule: Rule) -> bool:
    """Whether the plain evaluator, which is a regular expression a value, has an answer in reasonable time."""
    values = [it for clause in rule.clauses for asked in clause for it in (*asked.values, *asked.not_values)]
    return len(values) <= _MOST_RULES and all(len(value) < 200 and value.count("*") < 4 for value in values)


def _requests(book: Rulebook) -> Iterator[Request]:
    """Connections that the rules speak of, as far as their values are names and principals, and others."""
    names, callers = list(_NAMES), list(_CALLERS)
    for rule in book.rules[:_MOST_RULES]:
        for clause in rule.clauses[:_MOST_REQUESTS]:
            for condition in clause:
                value = next(iter((*condition.values, *condition.not_values)))
                if condition.attribute is Attribute.SNI:
                    names.append(value.replace("*", "a").encode("utf-8", "replace"))
                elif condition.attribute is Attribute.PRINCIPAL:
                    callers.append(value.replace("*", "a"))
                elif condition.attribute is Attribute.NAMESPACE:
                    callers.append(f"td/ns/{value.replace('*', 'a')}/sa/a")
    for name in names[-_MOST_REQUESTS:]:
        for caller in callers[-_MOST_REQUESTS:]:
            yield Request(_name(name), _identity(caller), "10.1.2.3")
    yield Request(_name(_NAMES[0]), UNKNOWN, "", ech=True, outer_name="a")


def _name(raw: bytes) -> ServerName:
    try:
        return parse_server_name(raw)
    except InvalidNameError:
        return parse_server_name(b"x.example")


def _identity(text: str) -> Identity:
    try:
        return parse_principal(text)
    except InvalidSpiffeIdError:
        return UNKNOWN
