"""The README keeps its word: its config works as pasted, and its table of patterns is what the code does."""

import re
from pathlib import Path

import pytest

from sniproxy.cli import run_command
from sniproxy.outcome import Event, Reason
from sniproxy.policy.match import parse_name_pattern

README = (Path(__file__).parent.parent / "README.md").read_text()


def yaml_blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def pattern_rows() -> list[tuple[str, str]]:
    return re.findall(r"^\| `([^`]+)` \|.*\| (valid|invalid) \|$", README, re.MULTILINE)


def test_the_config_and_the_policy_work_as_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files, under the names that the text gives them, pass `sniproxy check`; so do the rules shown after them."""
    config, policy, more_rules = yaml_blocks()
    (tmp_path / "sniproxy.yaml").write_text(config)
    for rules in (policy, more_rules):
        (tmp_path / "policy.yaml").write_text(rules)
        code = run_command(["check", "--config", str(tmp_path / "sniproxy.yaml")])
        assert (code, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize(("pattern", "word"), pattern_rows())
def test_the_table_of_patterns_is_true(pattern: str, word: str) -> None:
    """Each valid pattern is accepted, each invalid one refused."""
    try:
        parse_name_pattern(pattern)
        actual = "valid"
    except ValueError:
        actual = "invalid"
    assert actual == word


def test_the_table_of_patterns_is_there() -> None:
    """The test above has something to test."""
    assert len(pattern_rows()) >= 10


def test_the_reasons_are_those_of_the_code() -> None:
    """Every reason that the README names is one, with its event."""
    rows = re.findall(r"^\| `(close|deny|fail)` \| \w+ \| (.*) \|$", README, re.MULTILINE)
    named = {(event, word) for event, words in rows for word in re.findall(r"`(\w+)`", words)}
    known = {(reason.event.value, reason.word) for reason in Reason if reason.event is not Event.OPEN}
    assert named == known


def test_the_shipped_config_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    """What `make run` starts passes `sniproxy check`."""
    shipped = Path(__file__).parent.parent / "config" / "sniproxy.yaml"
    assert (run_command(["check", "--config", str(shipped)]), capsys.readouterr().err) == (0, "")
