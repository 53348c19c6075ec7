"""Asking a policy: one query, and files of them."""

import json
import re
from pathlib import Path

import pytest

from sniproxy.config.yaml_source import BadInputError
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import ServerName
from sniproxy.policy.model import Request
from sniproxy.queries import (
    ALLOWED,
    DENIED,
    NOT_AS_EXPECTED,
    Policy,
    explain_file,
    explain_one,
    parse_identity,
    parse_source_ip,
    read_queries,
)

RULES = """\
rules:
  - {name: wikipedia, action: allow, sni: ["*.wikipedia.org"], namespaces: [default]}
  - {name: no-english, action: deny, sni: [en.wikipedia.org]}
"""
SLEEP = "cluster.local/ns/default/sa/sleep"
DE, EN = ServerName("de.wikipedia.org"), ServerName("en.wikipedia.org")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    home = tmp_path_factory.mktemp("policy")
    (home / "config.yaml").write_text("policy: {files: [policy.yaml]}\nupstream: {port: 8443}\n")
    (home / "policy.yaml").write_text(RULES)
    return Policy(home / "config.yaml")


def request(name: ServerName = DE, principal: str = SLEEP) -> Request:
    return Request(name, parse_identity(principal), "")


def test_an_answer_has_its_rule_and_where_that_stands(policy: Policy) -> None:
    text, code = explain_one(policy, request(), as_json=False)
    assert (text.splitlines()[0], code) == ("allow", ALLOWED)
    assert "rule wikipedia of policy.yaml" in text
    assert "policy.yaml:2" in text


def test_a_refusal_has_its_reason_and_what_came_near(policy: Policy) -> None:
    text, code = explain_one(policy, request(principal=""), as_json=True)
    answer = json.loads(text)
    assert (answer["verdict"], answer["reason"], answer["rule"], code) == ("deny", "default", "none", DENIED)
    assert [(miss["rule"], miss["line"]) for miss in answer["nearMisses"]] == [("wikipedia", 2)]


def test_the_port_is_the_one_that_would_be_dialled(policy: Policy, tmp_path: Path) -> None:
    """Of one query, and of a file."""
    (tmp_path / "queries.yaml").write_text("- {sni: a.org, expect: allow}\n")
    assert [query.request.port for query in read_queries(tmp_path / "queries.yaml", policy.port)] == [8443]


QUERIES = f"""\
- {{sni: de.wikipedia.org, principal: {SLEEP}, expect: allow, rule: wikipedia}}
- {{sni: EN.Wikipedia.org., principal: {SLEEP}, expect: deny, reason: rule, rule: "policy.yaml-rule[no-english]"}}
- {{sni: de.wikipedia.org, source_ip: "10.1.2.3", expect: deny, reason: default, rule: none}}
- sni: de.wikipedia.org
  principal: null
  outer_sni: sni-proxy.local
  ech: true
  expect: deny
"""


def test_a_file_of_queries_that_are_all_answered_as_expected(policy: Policy, tmp_path: Path) -> None:
    """A table with who asks, for which name, what is expected, what comes, and by which rule."""
    file = tmp_path / "queries.yaml"
    file.write_text(QUERIES)
    text, code = explain_file(policy, file, as_json=False)
    rows = [re.split(" {2,}", line) for line in text.splitlines()]
    assert [row[:4] for row in rows[:-1]] == [
        ["who", "name", "expected", "got"],
        [SLEEP, "de.wikipedia.org", "allow by wikipedia", "allow"],
        [SLEEP, "en.wikipedia.org", "deny (rule) by policy.yaml-rule[no-english]", "deny (rule)"],
        ["unknown from 10.1.2.3", "de.wikipedia.org", "deny (default) by none", "deny (default)"],
        ["unknown", "de.wikipedia.org", "deny", "deny (default)"],
    ]
    assert rows[1][4].startswith("policy.yaml-rule[wikipedia] ")
    assert rows[1][4].endswith("policy.yaml:2")
    assert (rows[-1], code) == (["4 of 4 are as expected."], ALLOWED)


WRONG = {
    "another verdict": "{sni: en.wikipedia.org, expect: allow}",
    "another reason": "{sni: en.wikipedia.org, expect: deny, reason: default}",
    "another rule": "{sni: en.wikipedia.org, expect: deny, rule: wikipedia}",
}


@pytest.mark.parametrize("case", WRONG)
def test_an_answer_that_is_not_as_expected_is_marked(policy: Policy, tmp_path: Path, case: str) -> None:
    file = tmp_path / "queries.yaml"
    file.write_text(f"- {WRONG[case]}\n- {{sni: x.org, expect: deny}}\n")
    text, code = explain_file(policy, file, as_json=False)
    assert [line.endswith("<-- WRONG") for line in text.splitlines()] == [False, True, False, False]
    assert (text.splitlines()[-1], code) == ("1 of 2 are as expected.", NOT_AS_EXPECTED)


def test_in_json_a_file_is_a_list(policy: Policy, tmp_path: Path) -> None:
    """What was asked, what was expected, and all that one query would say."""
    file = tmp_path / "queries.yaml"
    file.write_text(f"- {{sni: en.wikipedia.org, principal: {SLEEP}, source_ip: '::1', expect: allow}}\n")
    text, code = explain_file(policy, file, as_json=True)
    (answer,) = json.loads(text)
    assert code == NOT_AS_EXPECTED
    assert {key: answer[key] for key in list(answer)[:8]} == {
        "sni": "en.wikipedia.org",
        "principal": SLEEP,
        "sourceIp": "::1",
        "expect": "allow",
        "asExpected": False,
        "verdict": "deny",
        "reason": "rule",
        "policy": "policy.yaml",
    }
    assert answer["nearMisses"] == []


BAD_QUERIES = {
    "no file": (None, ["1: cannot be read: no such file or directory"]),
    "nothing": ("", ["1: must hold one list of queries: - {sni: a.org, expect: deny}"]),
    "no list": ("sni: a.org\n", ["1: must be a list, not"]),
    "no mapping": ("- a.org\n", ["1: [0] must be a mapping of keys, not 'a.org'"]),
    "keys that lack": ("- {}\n", ["1: [0] lacks the key 'sni'; add it", "1: [0] lacks the key 'expect'; add it"]),
    "a key that is not known": (
        "- {sni: a.org, expect: deny, expected: 1}\n",
        ["1: unknown key 'expected' in [0]; did you mean 'expect'?"],
    ),
    "several at once": (
        "- {sni: a.org, expect: maybe}\n- {sni: 10.0.0.1, expect: deny}\n- {sni: a.org, expect: deny, reason: done}\n",
        ["1: [0].expect must be allow or deny, not 'maybe'", "2: [1].sni", "3: [2].reason must be rule, default"],
    ),
    "a principal that is none": ("- {sni: a.org, expect: deny, principal: '*'}\n", ["1: [0].principal: '*' is not"]),
    "an address that is none": ("- {sni: a.org, expect: deny, source_ip: 10}\n", ["1: [0].source_ip: 10 is no IP"]),
    "a flag that is none": ("- {sni: a.org, expect: deny, ech: 7}\n", ["1: [0].ech must be true or false, not 7"]),
    "no YAML": ("- {", ["1: is not YAML"]),
}


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_every_problem_of_a_file_of_queries_has_its_line(tmp_path: Path, case: str) -> None:
    text, expected = BAD_QUERIES[case]
    file = tmp_path / "queries.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInputError) as caught:
        read_queries(file, 443)
    told = [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]
    assert [line[: len(start)] for line, start in zip(told, expected, strict=True)] == expected


@pytest.mark.parametrize("text", [None, "", "unknown"])
def test_who_is_nobody_is_unknown(text: str | None) -> None:
    assert parse_identity(text) is UNKNOWN


def test_a_principal_may_have_its_scheme() -> None:
    assert parse_identity(f"spiffe://{SLEEP}") == parse_principal(SLEEP)


@pytest.mark.parametrize(("text", "address"), [("", ""), ("10.1.2.3", "10.1.2.3"), ("0::0:1", "::1")])
def test_an_address_is_canonical(text: str, address: str) -> None:
    assert parse_source_ip(text) == address
