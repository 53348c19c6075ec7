"""Policy files: rules as they are written, and every problem with its line and its mend."""

import gc
import json
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.model import Policy, PolicyFile, RequireMatch
from sniproxy.config.yaml_source import BadInputError
from sniproxy.policy import documents
from sniproxy.policy.documents import LoadedPolicy, load_policy
from sniproxy.policy.engine import Engine
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


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its files in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*paths: Path, policy: Policy | None = None, extra: tuple[Rule, ...] = ()) -> LoadedPolicy:
    return load_policy(policy or Policy(), [(path, PolicyFile(path="*.yaml")) for path in paths], extra)


def read(*texts: str, policy: Policy | None = None) -> Rulebook:
    """The rulebook of the files a.yaml, b.yaml ... with these texts."""
    paths = [Path(f"{letter}.yaml") for letter, _ in zip("abc", texts, strict=False)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return load(*paths, policy=policy).rulebook


def problems(*texts: str) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        read(*texts)
    return [str(problem) for problem in caught.value.problems]


WHOLE = """\
default: allow
rules:
  - name: us-wikipedia
    action: allow
    mode: monitor
    principals: [cluster.local/ns/default/sa/sleep-us, cluster.local/ns/other/*]
    not_principals: [spiffe://cluster.local/ns/default/sa/sleep-canada]
    namespaces: [default, '*']
    not_namespaces: [kube-system]
    sni: [EN.wikipedia.org, '*.wikipedia.org.']
    not_sni: [es.wikipedia.org]
    source_ips: [10.0.0.0/8, 192.0.2.1]
    allow_networks: [10.1.0.0/16]
    limits: {connections: 100, rate: 5/s, burst: 20, per: principal}
  - {name: no-english, action: deny, namespaces: [default], sni: [en.wikipedia.org]}
  - {name: watch, action: audit, not_sni: ['*.org']}
"""


def test_every_key_of_a_rule_is_read() -> None:
    first, second, third = read(WHOLE).rules
    assert first == Rule(
        Ground("a.yaml", "us-wikipedia", "a.yaml", 3),
        Action.ALLOW,
        clauses=(
            (
                Condition(Attribute.SNI, ("en.wikipedia.org", "*.wikipedia.org"), ("es.wikipedia.org",)),
                Condition(
                    Attribute.PRINCIPAL,
                    ("cluster.local/ns/default/sa/sleep-us", "cluster.local/ns/other/*"),
                    ("cluster.local/ns/default/sa/sleep-canada",),
                ),
                Condition(Attribute.NAMESPACE, ("default", "*"), ("kube-system",)),
                Condition(Attribute.SOURCE_IP, ("10.0.0.0/8", "192.0.2.1/32")),
            ),
        ),
        is_monitored=True,
        allow_networks=(ip_network("10.1.0.0/16"),),
        limits=RuleLimits(connections=100, rate=5.0, burst=20, per=Per.PRINCIPAL),
    )
    assert second == Rule(
        Ground("a.yaml", "no-english", "a.yaml", 15),
        Action.DENY,
        (
            (
                Condition(Attribute.SNI, ("en.wikipedia.org",)),
                Condition(Attribute.NAMESPACE, ("default",)),
            ),
        ),
    )
    assert third == Rule(
        Ground("a.yaml", "watch", "a.yaml", 16), Action.AUDIT, ((Condition(Attribute.SNI, (), ("*.org",)),),)
    )


# The example of the product's description, whole.
EXAMPLE = """\
default: deny
rules:
  - name: us-wikipedia
    action: allow                        # allow | deny | audit
    mode: enforce                        # enforce | monitor
    principals: [cluster.local/ns/default/sa/sleep-us]
    sni: [en.wikipedia.org, es.wikipedia.org]
    limits: {connections: 100, rate: 5/s, burst: 20, per: principal}
    allow_networks: []
  - {name: no-english, action: deny, namespaces: [default], sni: [en.wikipedia.org]}
"""


def test_the_example_policy_is_right() -> None:
    book = read(EXAMPLE)
    assert [(rule.ground.rule, rule.action, rule.is_monitored) for rule in book.rules] == [
        ("us-wikipedia", Action.ALLOW, False),
        ("no-english", Action.DENY, False),
    ]


def test_a_rule_may_be_all_about_nothing() -> None:
    """A rule without conditions holds for everyone; that is said by leaving them out, never by an empty list."""
    (rule,) = read("rules: [{name: everyone, action: allow}]\n").rules
    assert rule.clauses == ((),)


LIMITS = {
    "{connections: 3}": RuleLimits(connections=3),
    "{rate: 30/m}": RuleLimits(rate=0.5, burst=1),
    "{rate: 10/s}": RuleLimits(rate=10.0, burst=10),
    "{rate: 7200/h, burst: 5, per: rule}": RuleLimits(rate=2.0, burst=5),
    "{connections: 1, per: principal}": RuleLimits(connections=1, per=Per.PRINCIPAL),
}


@pytest.mark.parametrize(("text", "limits"), LIMITS.items())
def test_limits_are_counts_and_rates(text: str, limits: RuleLimits) -> None:
    """Without a burst, what a rate lets through in a second may come at once, and one connection always may."""
    (rule,) = read(f"rules: [{{name: a, action: allow, limits: {text}}}]\n").rules
    assert rule.limits == limits


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
    first = Rule(Ground("command-line", "--deny x.org", "command line", 0), Action.DENY, ((),))
    Path("a.yaml").write_text("rules: [{name: one, action: allow}]\n---\nrules: [{name: two, action: deny}]\n")
    Path("b.yaml").write_text("rules:\n- {name: three, action: allow}\n- {name: four, action: deny}\n")
    book = load(Path("a.yaml"), Path("b.yaml"), extra=(first,)).rulebook
    assert [rule.ground.rule for rule in book.rules] == ["--deny x.org", "one", "two", "three", "four"]


def test_rules_of_our_own_stand_before_those_of_istio() -> None:
    """Wherever they are written: an own deny or allow is looked for first."""
    policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all}\nspec: {rules: [{}]}\n"
    book = read(f"{policy}---\nrules: [{{name: one, action: deny, sni: [a.org]}}]\n")
    assert [rule.ground.rule for rule in book.rules] == ["one", "0"]


SETTINGS = {
    "nothing": (Policy(), Rulebook()),
    "monitor mode": (Policy(mode="monitor"), Rulebook(monitor=True)),
    "an identity for all": (Policy(require_identity=True), Rulebook(require_identity=True)),
    "what becomes of ECH": (Policy(ech="deny"), Rulebook(ech=EchPolicy.DENY)),
    "the registry alone": (Policy(registry="only"), Rulebook(registry_only=True)),
    "an equal outer SNI": (Policy(outer_sni="require_equal"), Rulebook(outer_sni=OuterSni(must_equal=True))),
    "a list of outer SNIs": (
        Policy(outer_sni=RequireMatch(require_match=("*.example.org",))),
        Rulebook(outer_sni=OuterSni(patterns=("*.example.org",))),
    ),
}


@pytest.mark.parametrize(("policy", "book"), SETTINGS.values(), ids=SETTINGS)
def test_the_config_says_what_holds_beside_the_rules(policy: Policy, book: Rulebook) -> None:
    assert read("rules: []\n", policy=policy) == book


def test_a_policy_is_called_by_its_file_name_alone(folder: Path) -> None:
    path = folder / "deep" / "google.yaml"
    path.parent.mkdir()
    path.write_text("rules:\n- {name: r, action: deny}\n")
    (rule,) = load(path).rulebook.rules
    assert rule.ground == Ground("google.yaml", "r", str(path), 2)
    assert str(rule.ground) == "google.yaml-rule[r]"


def test_a_file_name_that_would_break_a_log_or_a_metric_is_escaped() -> None:
    path = Path("a\n\x1f\udcff.yaml")
    path.write_text("rules: [{name: r, action: deny}]\n")
    (rule,) = load(path).rulebook.rules
    assert rule.ground.policy == r"a\n\x1f\udcff.yaml"


RULE_KEYS = (
    "name, action, mode, sni, not_sni, principals, not_principals, namespaces, not_namespaces, source_ips, "
    "allow_networks, limits"
)
RULE_NAME = "is no rule name; write 1 to 128 letters, digits, spaces and any of . : / @ + - _"
RATE = "is no rate; write how many a second, minute or hour: 5/s, 30/m, 500/h"
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
        ["a.yaml:3: rules[0].action must be allow, deny or audit, not 'accept'"],
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
    "another mode": (rule("mode: off"), ["a.yaml:2: rules[0].mode must be enforce or monitor, not 'off'"]),
    "a limit of nothing": (
        rule("limits: {per: rule}"),
        ["a.yaml:2: rules[0].limits limits nothing; add connections: 100, or rate: 5/s"],
    ),
    "limits that are none": (
        "rules:\n  - name: a\n    action: allow\n    limits:\n      connections: 0\n      rate: 5\n      per: user\n",
        [
            "a.yaml:5: rules[0].limits.connections must be at least 1, not 0",
            f"a.yaml:6: rules[0].limits.rate: 5 {RATE}",
            "a.yaml:7: rules[0].limits.per must be rule or principal, not 'user'",
        ],
    ),
    "limits that are no mapping": (
        rule("limits: 5/s"),
        ["a.yaml:2: rules[0].limits must be a mapping of keys, not '5/s'"],
    ),
    "a rate of nothing": (
        rule("limits: {rate: 0/s}"),
        [
            f"a.yaml:2: rules[0].limits.rate: '0/s' {RATE}",
        ],
    ),
    "a burst without a rate": (
        rule("limits: {connections: 5, burst: 3}"),
        ["a.yaml:2: rules[0].limits.burst is how far a rate may be run ahead of, and there is none; add rate: 5/s"],
    ),
    "a number in quotes": (
        rule("limits: {connections: '5'}"),
        ["a.yaml:2: rules[0].limits.connections must be a whole number, not '5'; take the quotes off"],
    ),
    "a deny rule with what only allow rules have": (
        "rules:\n  - {name: a, action: deny, allow_networks: [10.0.0.0/8], limits: {rate: 5/s}}\n",
        [
            "a.yaml:2: rules[0].allow_networks is for allow rules, and this one has action deny; drop it",
            "a.yaml:2: rules[0].limits is for allow rules, and this one has action deny; drop it",
        ],
    ),
    "an audit rule with what only rules that decide have": (
        "rules:\n  - {name: a, action: audit, mode: monitor, limits: {rate: 5/s}}\n",
        [
            "a.yaml:2: rules[0].limits is for allow rules, and this one has action audit; drop it",
            "a.yaml:2: rules[0].mode is for rules that decide, and this one has action audit; drop it",
        ],
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
    "a document that is neither ours nor of Kubernetes": (
        "kind: AuthorizationPolicy\nrules: []\n",
        ["a.yaml:1: lacks the key 'apiVersion'; add it"],
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
        load(Path("gone.yaml"))
    assert str(caught.value) == "gone.yaml:1: cannot be read: no such file or directory"


def test_what_was_wrong_before_a_file_turned_out_not_to_be_yaml_is_told_too() -> None:
    assert problems("rules: [{name: a}]\n---\n}\n")[0] == "a.yaml:1: rules[0] lacks the key 'action'; add it"


def test_what_is_doubtful_is_told_without_refusing_it() -> None:
    Path("a.yaml").write_text("rules:\n- {name: b, action: deny, namespaces: [x]}\n")
    (warning,) = load(Path("a.yaml")).warnings
    assert str(warning).startswith("a.yaml:2: rule 'b' denies by namespace")


# What would cost too much is refused before it does.


def test_a_file_of_mistakes_is_not_read_to_its_end() -> None:
    told = problems("rules:\n" + "- {name: a}\n" * 10_000, "rules: 3\n")
    assert len(told) == 1001
    assert told[-1] == "a.yaml:1001: reading stops here, at 1,000 problems; mend these first"


def test_a_list_of_mistakes_is_not_read_to_its_end() -> None:
    told = problems(f"rules: [{{name: a, action: deny, sni: [{'3, ' * 100_000}]}}]\n")
    assert len(told) == 1001


def test_aliases_do_not_make_more_rules_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value counts as often as it is used, since that is what the rules take when they are compiled."""
    monkeypatch.setattr(documents, "MAX_ENTRIES", 100)
    names = ", ".join(f"{number}.org" for number in range(30))
    rules = "".join(f"- {{name: r{number}, action: deny, sni: *names}}\n" for number in range(10))
    assert problems(f"rules:\n- {{name: r, action: deny, sni: &names [{names}]}}\n{rules}") == [
        "a.yaml:3: the rules stand for more than 100 values; use fewer, shorter lists and no aliases"
    ]


def test_the_collector_rests_while_a_policy_is_read_and_no_longer() -> None:
    assert gc.isenabled()
    with pytest.raises(BadInputError):
        load(Path("gone.yaml"))
    assert gc.isenabled()


KEYS = [*("default", "rules", *RULE_KEYS.split(", "), "connections", "rate", "burst", "per")]
TEXTS = ["allow", "deny", "audit", "monitor", "a", "a.org", "*.org", "*", "td/ns/a/sa/b", "10.0.0.0/8", "5/s", ""]
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=30,
)
RULES = st.lists(
    st.fixed_dictionaries({"name": TREES, "action": TREES}, optional=dict.fromkeys(KEYS[4:], TREES)), max_size=3
)


@given(TREES | st.fixed_dictionaries({"rules": RULES}))
def test_any_values_at_known_keys_are_read_or_refused(tree: object) -> None:
    """Each problem is one line, and what is read can be compiled."""
    told: list[str] = []
    try:
        Engine.of(read(json.dumps(tree)))  # JSON is YAML
    except BadInputError as error:
        told = [str(problem) for problem in error.problems]
    assert [problem for problem in told if len(problem.splitlines()) != 1] == []
