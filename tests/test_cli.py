"""The command line: exit codes, and what goes where. No server is started."""

from pathlib import Path

import pytest

from sniproxy import __version__, cli
from sniproxy.cli import run_command
from sniproxy.config.model import Config, Listener
from sniproxy.config.units import TcpAddress
from sniproxy.net.listener import CannotOpenError
from sniproxy.reload.generation import Loaded, Source, load
from sniproxy.supervisor import Supervisor

DONE, BAD_INPUT, USAGE = 0, 1, 2
DENIED = 3

GOOD = "policy: {files: [policy.yaml]}\n"
POLICY = "default: allow\nrules:\n  - {name: no-english, action: deny, sni: [en.wikipedia.org]}\n"
# Right, and doubtful: in Istio no principal has a scheme, and this policy would deny nobody.
DOUBTFUL = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: doubtful}
spec:
  action: DENY
  rules:
    - from: [{source: {principals: ["spiffe://cluster.local/ns/default/sa/sleep"]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: of-no-use-here}
"""


class Started:
    """Stands in for the supervisor: keeps what it was to run, and runs nothing."""

    last: "Started"

    def __init__(self, source: Source) -> None:
        self.source = source
        Started.last = self

    def run(self) -> None:
        """Nothing to do: the test looks at what was given."""

    @property
    def loaded(self) -> Loaded:
        return load(self.source)

    @property
    def rules(self) -> list[str]:
        return [rule.ground.rule for rule in self.loaded.policy.rulebook.rules]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good config, no log that would stay configured, and no supervisor that would serve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "Supervisor", Started)
    monkeypatch.setattr(cli, "configure", lambda: None)
    Path("good.yaml").write_text(GOOD)
    Path("policy.yaml").write_text(POLICY)
    return tmp_path


def test_check_says_that_a_config_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check", "--config", "good.yaml"]) == DONE
    assert capsys.readouterr() == ("good.yaml: good; 1 rules, default allow\n", "")


def test_check_without_a_config_checks_the_built_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check"]) == DONE
    assert capsys.readouterr() == ("the built-in config: good; 0 rules, default deny\n", "")


def test_check_tells_what_is_doubtful_and_what_decides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings go to standard error and fail nothing."""
    Path("policy.yaml").write_text(DOUBTFUL)
    assert run_command(["check", "--config", "good.yaml"]) == DONE
    out, error = capsys.readouterr()
    ignored = "1 VirtualService (networking.istio.io/v1)"
    assert out == f"good.yaml: good; 1 rules, default deny; ignored: {ignored}\n"
    assert {line.partition(" warning: ")[0] for line in error.splitlines()} == {"policy.yaml:7:"}


def test_strict_lets_what_is_doubtful_fail(capsys: pytest.CaptureFixture[str]) -> None:
    Path("policy.yaml").write_text(DOUBTFUL)
    assert run_command(["check", "--config", "good.yaml", "--strict"]) == BAD_INPUT
    out, error = capsys.readouterr()
    assert (out, "policy.yaml:7: warning: " in error) == ("", True)


def test_strict_asks_no_more_of_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check", "--config", "good.yaml", "--strict"]) == DONE
    assert capsys.readouterr() == ("good.yaml: good; 1 rules, default allow\n", "")


EXPLAINED = {
    "allowed": (["--sni", "de.wikipedia.org"], DONE, "allow\n  by no rule\n"),
    "denied": (["--sni", "en.wikipedia.org"], DENIED, "deny (rule): rbac_access_denied_matched_policy[policy.yaml-"),
    "in JSON": (["--sni", "en.wikipedia.org", "--json"], DENIED, '{\n  "verdict": "deny",\n  "reason": "rule",\n'),
    "with all there is to say": (
        [
            *("--sni", "EN.Wikipedia.org.", "--principal", "cluster.local/ns/default/sa/sleep"),
            *("--source-ip", "10.1.2.3", "--outer-sni", "x.org", "--ech"),
        ],
        DENIED,
        "deny (rule)",
    ),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_explain_says_what_would_be_decided(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And says it with its exit code, too."""
    arguments, code, text = EXPLAINED[case]
    assert run_command(["explain", "--config", "good.yaml", *arguments]) == code
    out, error = capsys.readouterr()
    assert (out[: len(text)], error) == (text, "")


QUERIES = {
    "all as expected": ("- {sni: en.wikipedia.org, expect: deny}\n- {sni: x.org, expect: allow}\n", DONE),
    "one that is not": ("- {sni: en.wikipedia.org, expect: deny}\n- {sni: x.org, expect: deny}\n", BAD_INPUT),
}


@pytest.mark.parametrize("case", QUERIES)
def test_explain_asks_a_file_of_queries(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, code = QUERIES[case]
    Path("queries.yaml").write_text(text)
    assert run_command(["explain", "--config", "good.yaml", "--file", "queries.yaml"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == f"{2 - code} of 2 are as expected."


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--config", "nope.yaml", "--sni", "a.org"], "nope.yaml:1: cannot be read"),
        (["--config", "good.yaml", "--file", "nope.yaml"], "nope.yaml:1: cannot be read"),
    ],
)
def test_explain_needs_good_input(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["explain", *arguments]) == BAD_INPUT
    out, error = capsys.readouterr()
    assert (out, error[: len(problem)]) == ("", problem)


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_bad_config_is_told_line_by_line_and_nothing_starts(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "Supervisor", Supervisor)
    Path("bad.yaml").write_text("workers: 0\nupstreem: {}\n")
    assert run_command([command, "--config", "bad.yaml"]) == BAD_INPUT
    assert capsys.readouterr() == (
        "",
        (
            "bad.yaml:1: workers: 0 is no number of workers; write auto, or a number from 1 to 256\n"
            "bad.yaml:2: unknown key 'upstreem'; did you mean 'upstream'?\n"
        ),
    )


def test_a_bad_policy_is_told_with_its_own_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("policy.yaml").write_text("rules:\n  - {name: a}\n")
    assert run_command(["check", "--config", "good.yaml"]) == BAD_INPUT
    assert capsys.readouterr() == ("", "policy.yaml:2: rules[0] lacks the key 'action'; add it\n")


def test_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "Supervisor", Supervisor)
    assert run_command(["run", "--config", "nope.yaml"]) == BAD_INPUT
    assert capsys.readouterr() == ("", "nope.yaml:1: cannot be read: no such file or directory\n")


def test_an_address_in_use_is_bad_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_started: Started) -> None:
        raise CannotOpenError("cannot listen on 127.0.0.1:8443: address already in use")

    monkeypatch.setattr(Started, "run", run)
    assert run_command(["run"]) == BAD_INPUT
    assert capsys.readouterr() == ("", "sniproxy: cannot listen on 127.0.0.1:8443: address already in use\n")


def test_run_without_a_config_refuses_all_but_what_is_allowed() -> None:
    assert run_command(["run", "--allow", "*.wikipedia.org", "--deny", "en.wikipedia.org"]) == DONE
    loaded = Started.last.loaded
    assert loaded.config == Config()
    assert [(str(rule.ground), rule.action.value) for rule in loaded.policy.rulebook.rules] == [
        ("command-line-rule[--deny en.wikipedia.org]", "deny"),
        ("command-line-rule[--allow *.wikipedia.org]", "allow"),
    ]


def test_rules_of_the_command_line_come_before_those_of_files() -> None:
    assert run_command(["run", "--config", "good.yaml", "--allow", "de.wikipedia.org"]) == DONE
    assert Started.last.rules == ["--allow de.wikipedia.org", "no-english"]


def test_an_option_that_is_given_twice_counts_once() -> None:
    assert run_command(["run", "--allow", "a.org", "--allow", "a.org"]) == DONE
    assert Started.last.rules == ["--allow a.org"]


def test_options_replace_what_the_config_says() -> None:
    assert run_command(["run", "--config", "good.yaml", "--listen", "[::1]:9443", "--workers", "3"]) == DONE
    config = Started.last.loaded.config
    assert (config.listeners, config.workers) == ((Listener(address=TcpAddress("::1", 9443)),), 3)


ADDRESS = 'is no address; write an IP address and a port: 127.0.0.1:8443 or "[::1]:8443"'
USAGE_ERRORS = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "an unknown command": (["serve"], "invalid choice: 'serve'"),
    "an unknown option": (["check", "--verbose"], "unrecognized arguments: --verbose"),
    "an option without its value": (["run", "--listen"], "argument --listen: expected one argument"),
    "an address that is none": (["run", "--listen", "8443"], f"argument --listen: '8443' {ADDRESS}"),
    "a pattern that is none": (
        ["run", "--allow", "*wikipedia.org"],
        (
            "argument --allow: '*wikipedia.org' is no pattern; "
            "a star stands alone, or first with a dot behind it: *.wikipedia.org"
        ),
    ),
    "a pattern that is no text": (["run", "--deny", "\udcff"], "argument --deny: '\\udcff' is not a DNS host name"),
    "nothing to explain": (["explain"], "one of the arguments --sni --file is required"),
    "two things to explain": (["explain", "--sni", "a.org", "--file", "q"], "--file: not allowed with argument --sni"),
    "a name that is an address": (["explain", "--sni", "127.0.0.1"], "argument --sni: '127.0.0.1' is an IP address"),
    "a principal that is none": (["explain", "--sni", "a.org", "--principal", "*"], "argument --principal: '*' is not"),
    "a source that is none": (["explain", "--sni", "a.org", "--source-ip", "x"], "argument --source-ip: 'x' is no IP"),
    "no workers": (["run", "--workers", "0"], "argument --workers: '0' is no number of workers from 1 to 256"),
    "too many workers": (["run", "--workers", "9" * 5000], "is no number of workers from 1 to 256"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS.values(), ids=USAGE_ERRORS)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(arguments)
    out, error = capsys.readouterr()
    assert (caught.value.code, out) == (USAGE, "")
    assert message in error


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(["--version"])
    assert caught.value.code == DONE
    assert capsys.readouterr().out == f"sniproxy {__version__}\n"
