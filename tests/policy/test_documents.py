"""Policy files: rules as they are written, and every problem with its line and its mend."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from sniproxy.config.model import Policy
from sniproxy.config.yaml_source import BadInputError
from sniproxy.policy.documents import load_rulebook
from sniproxy.policy.engine import EchPolicy, Rulebook
from sniproxy.policy.match import parse_identity_pattern, parse_name_pattern
from sniproxy.policy.model import Action, Ground, Rule


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its files in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*texts: str, policy: Policy | None = None) -> Rulebook:
    """The rulebook of the files a.yaml, b.yaml ... with these texts."""
    paths = [Path(f"{letter}.yaml") for letter, _ in zip("abc", texts, strict=False)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return load_rulebook(policy or Policy(), paths)


def problems(*texts: str) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        read(*texts)
    return [str(problem) for problem in caught.value.problems]


WHOLE = """\
default: allow
rules:
  - name: us-wikipedia
    action: allow
    mode: enforce
    principals: [cluster.local/ns/default/sa/sleep-us, cluster.local/ns/other/*]
    not_principals: [spiffe://cluster.local/ns/default/sa/sleep-canada]
    namespaces: [default, '*']
    not_namespaces: [kube-system]
    sni: [EN.wikipedia.org, '*.wikipedia.org.']
    not_sni: [es.wikipedia.org]
    source_ips: [10.0.0.0/8, 192.0.2.1]
    allow_networks: [10.1.0.0/16]
  - {name: no-english, action: deny, namespaces: [default], sni: [en.wikipedia.org]}
"""


def test_every_key_of_a_rule_is_read() -> None:
    first, second = read(WHOLE).rules
    assert {name: getattr(first, name) for name in Rule.__slots__} == {
        "ground": Ground("a.yaml", "us-wikipedia", "a.yaml", 3),
        "action": Action.ALLOW,
        "names": (parse_name_pattern("en.wikipedia.org"), parse_name_pattern("*.wikipedia.org")),
        "not_names": (parse_name_pattern("es.wikipedia.org"),),
        "principals": tuple(
            map(parse_identity_pattern, ["cluster.local/ns/default/sa/sleep-us", "cluster.local/ns/other/*"])
        ),
        "not_principals": (parse_identity_pattern("cluster.local/ns/default/sa/sleep-canada"),),
        "namespaces": ("default", "*"),
        "not_namespaces": ("kube-system",),
        "source_networks": (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32")),
        "allow_networks": (ip_network("10.1.0.0/16"),),
    }
    assert (second.action, second.ground.line) == (Action.DENY, 14)


def test_a_rule_may_be_all_about_nothing() -> None:
    """A rule without conditions holds for everyone; that is said by leaving them out, never by an empty list."""
    (rule,) = read("rules: [{name: everyone, action: allow}]\n").rules
    assert (rule.names, rule.principals, rule.namespaces, rule.source_networks) == ((), (), (), ())


DEFAULTS = {
    "no file says it": (["rules: []\n"], Action.DENY),
    "a file says allow": (["default: allow\n"], Action.ALLOW),
    "a file says deny": (["default: deny\n"], Action.DENY),
    "one file says it and another does not": (["rules: []\n", "default: allow\n"], Action.ALLOW),
    "two files agree": (["default: allow\n", "default: allow\n"], Action.ALLOW),
}


@pytest.mark.parametrize(("texts", "default"), DEFAULTS.values(), ids=DEFAULTS)
def test_the_default_is_deny_unless_a_file_says_allow(texts: list[str], default: Action) -> None:
    assert read(*texts).default is default


def test_rules_keep_the_order_of_files_documents_and_lines() -> None:
    """The command line's come first."""
    first = Rule(Ground("command-line", "--deny x.org", "command line", 0), Action.DENY)
    Path("a.yaml").write_text("rules: [{name: one, action: allow}]\n---\nrules: [{name: two, action: deny}]\n")
    Path("b.yaml").write_text("rules:\n- {name: three, action: allow}\n- {name: four, action: deny}\n")
    book = load_rulebook(Policy(), [Path("a.yaml"), Path("b.yaml")], [first])
    assert [rule.ground.rule for rule in book.rules] == ["--deny x.org", "one", "two", "three", "four"]


def test_the_config_says_what_holds_beside_the_rules() -> None:
    book = read("rules: []\n", policy=Policy(require_identity=True, ech="deny"))
    assert (book.require_identity, book.ech) == (True, EchPolicy.DENY)


def test_a_policy_is_called_by_its_file_name_alone(folder: Path) -> None:
    path = folder / "deep" / "google.yaml"
    path.parent.mkdir()
    path.write_text("rules:\n- {name: r, action: deny}\n")
    (rule,) = load_rulebook(Policy(), [path]).rules
    assert rule.ground == Ground("google.yaml", "r", str(path), 2)
    assert str(rule.ground) == "google.yaml-rule[r]"


def test_a_file_name_that_would_break_a_log_or_a_metric_is_escaped() -> None:
    path = Path("a\n\x1f\udcff.yaml")
    path.write_text("rules: [{name: r, action: deny}]\n")
    (rule,) = load_rulebook(Policy(), [path]).rules
    assert rule.ground.policy == r"a\n\x1f\udcff.yaml"


RULE_KEYS = (
    "name, action, mode, sni, not_sni, principals, not_principals, namespaces, not_namespaces, source_ips, "
    "allow_networks"
)
RULE_NAME = "is no rule name; write 1 to 128 letters, digits, spaces and any of . : / @ + - _"
NAME = "is not a DNS host name; write en.wikipedia.org, *.wikipedia.org or *"


def rule(condition: str) -> str:
    return f"rules:\n  - {{name: a, action: allow, {condition}}}\n"


WRONG = {
    "nothing in a file": ("# later\n", ["a.yaml:1: has no rules; write some, or drop the file"]),
    "rules without the key": (
        "- {name: a, action: allow}\n",
        ["a.yaml:1: must hold keys with values, like `key: value`, not a list"],
    ),
    "a key without rules": ("rules:\n", ["a.yaml:1: rules has no value; give it one, or drop it"]),
    "a default without a value": ("default:\n", ["a.yaml:1: default has no value; give it one, or drop it"]),
    "another default": ("default: audit\n", ["a.yaml:1: default must be allow or deny, not 'audit'"]),
    "a rule that is no list": (
        "rules: {name: a, action: allow}\n",
        ["a.yaml:1: rules must be a list, not a mapping"],
    ),
    "no name": ("rules:\n  - action: allow\n", ["a.yaml:2: rules[0] lacks the key 'name'; add it"]),
    "no action": ("rules:\n  - name: a\n", ["a.yaml:2: rules[0] lacks the key 'action'; add it"]),
    "another action": (
        "rules:\n  - name: a\n    action: accept\n",
        ["a.yaml:3: rules[0].action must be allow or deny, not 'accept'"],
    ),
    "a name of two lines": (
        'rules:\n  - {name: "a\\nb", action: deny}\n',
        [f"a.yaml:2: rules[0].name: 'a\\nb' {RULE_NAME}"],
    ),
    "a name that is too long": (
        f"rules:\n  - {{name: {'x' * 129}, action: deny}}\n",
        [f"a.yaml:2: rules[0].name: '{'x' * 60}'... {RULE_NAME}"],
    ),
    "a name that is a number": (
        "rules:\n  - {name: 3, action: deny}\n",
        [f"a.yaml:2: rules[0].name: 3 {RULE_NAME}"],
    ),
    "two rules of one name": (
        "rules:\n  - {name: a, action: deny}\n  - {name: a, action: allow}\n",
        ["a.yaml:3: rule 'a' has the name of the one at a.yaml:2; rename one"],
    ),
    "a key that is like another": (rule("snis: []"), ["a.yaml:2: unknown key 'snis' in rules[0]; did you mean 'sni'?"]),
    "a key that is like no other": (
        rule("zzz: 1"),
        [f"a.yaml:2: unknown key 'zzz' in rules[0]; the keys here are {RULE_KEYS}"],
    ),
    "a key of a later version": (
        rule("limits: {rate: 5/s}"),
        [f"a.yaml:2: unknown key 'limits' in rules[0]; the keys here are {RULE_KEYS}"],
    ),
    "a star without quotes": (
        rule("sni: [*.x.org]"),
        [
            (
                "a.yaml:2: is not YAML: did not find expected alphabetic or numeric character; "
                'quote names that begin with a star: ["*.example.org"]'
            )
        ],
    ),
    "a name that is no list": (
        rule("sni: en.wikipedia.org"),
        ["a.yaml:2: rules[0].sni must be a list, not 'en.wikipedia.org'; write ['en.wikipedia.org']"],
    ),
    "an empty list, which would say nothing and mean everything": (
        rule("sni: [], principals: [], namespaces: [], source_ips: []"),
        [
            "a.yaml:2: rules[0].sni is empty; fill it, or drop it",
            "a.yaml:2: rules[0].principals is empty; fill it, or drop it",
            "a.yaml:2: rules[0].namespaces is empty; fill it, or drop it",
            "a.yaml:2: rules[0].source_ips is empty; fill it, or drop it",
        ],
    ),
    "names that are none, each at its line": (
        "rules:\n  - name: a\n    action: allow\n    sni:\n      - a..b\n      - 3\n      -\n      - b.org\n",
        [
            f"a.yaml:5: rules[0].sni[0]: 'a..b' {NAME}",
            "a.yaml:6: rules[0].sni[1]: 3 is not text; put it in quotes",
            "a.yaml:7: rules[0].sni[2] has no value; give it one, or drop it",
        ],
    ),
    "a principal that is none": (
        rule("principals: [sleep us]"),
        [
            (
                "a.yaml:2: rules[0].principals[0]: 'sleep us' is not a SPIFFE ID: a trust domain has lower-case "
                "letters, digits, '.', '-' and '_'; write it as cluster.local/ns/default/sa/sleep"
            )
        ],
    ),
    "a namespace that is none": (
        rule("namespaces: [Default]"),
        [
            (
                "a.yaml:2: rules[0].namespaces[0]: 'Default' is no namespace; "
                "write up to 63 lower-case letters, digits and '-': default"
            )
        ],
    ),
    "an address that is none": (
        rule("source_ips: [localhost]"),
        ["a.yaml:2: rules[0].source_ips[0]: 'localhost' is no network; write it as 10.0.0.0/8 or fd00::/8"],
    ),
    "a document of Kubernetes": (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n",
        [
            (
                "a.yaml:2: this version reads no Kubernetes documents, and this one is of kind 'AuthorizationPolicy'; "
                "write our own rules"
            )
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_says_what_is_wrong_and_how_to_mend_it(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_two_files_that_disagree_about_the_default() -> None:
    assert problems("default: deny\n", "rules: []\ndefault: allow\n") == [
        "b.yaml:2: default: allow disagrees with the default at a.yaml:1; keep one"
    ]


def test_two_files_with_rules_of_one_name() -> None:
    one = "rules:\n  - {name: a, action: deny}\n"
    assert problems(one, one) == ["b.yaml:2: rule 'a' has the name of the one at a.yaml:2; rename one"]


def test_the_problems_of_all_files_come_at_once() -> None:
    assert problems("rules: [\n", "rules:\n  - name: x\n---\ndefault: no\n", "zzz: 1\n") == [
        "a.yaml:1: is not YAML: the file ends before what begins here; close its bracket or quote",
        "b.yaml:2: rules[0] lacks the key 'action'; add it",
        "b.yaml:4: default must be allow or deny, not 'no'",
        "c.yaml:1: unknown key 'zzz'; the keys here are default, rules",
    ]


def test_a_policy_file_that_has_gone() -> None:
    with pytest.raises(BadInputError) as caught:
        load_rulebook(Policy(), [Path("gone.yaml")])
    assert str(caught.value) == "gone.yaml:1: cannot be read: no such file or directory"
