"""`sniproxy demo` as its user runs it: the whole story in one command, offline, with an honest exit code."""

import subprocess
import sys

import pytest

from sniproxy import demo


def test_the_demo_plays_and_everyone_gets_what_the_policy_says() -> None:
    """The table, the log lines and the metrics; exit code 0."""
    command = [sys.executable, "-m", "sniproxy", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("sleep-")]
    assert [row[:4] for row in rows] == [
        ["sleep-us", "en.wikipedia.org", "served", "served"],
        ["sleep-us", "de.wikipedia.org", "refused", "refused"],
        ["sleep-us", "es.wikipedia.org", "served", "served"],
        ["sleep-us", "fr.wikipedia.org", "refused", "refused"],
        ["sleep-canada", "en.wikipedia.org", "served", "served"],
        ["sleep-canada", "de.wikipedia.org", "refused", "refused"],
        ["sleep-canada", "es.wikipedia.org", "refused", "refused"],
        ["sleep-canada", "fr.wikipedia.org", "served", "served"],
    ]
    assert done.stdout.count('"connectionEvent":"deny"') == 4
    assert "sniproxy_connections_accepted_total +8" in done.stdout
    assert "8 of 8 got what the policy says." in done.stdout


def test_a_row_that_differs_fails_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A policy that lets sleep-canada read German is caught: exit code 1, and the row is marked."""
    wider = demo.POLICY.replace("[en.wikipedia.org, fr.wikipedia.org]", '["*.wikipedia.org"]')
    monkeypatch.setattr(demo, "POLICY", wider)
    assert demo.run_demo() == 1
    said = capsys.readouterr().out
    assert said.count("<-- WRONG") == 2
    assert "6 of 8 got what the policy says." in said
