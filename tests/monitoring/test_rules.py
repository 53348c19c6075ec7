"""The alert rules: they fire when they should, by promtool's own judgment, and each of them is tried."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
RULES = HERE.parent.parent / "monitoring" / "prometheus-rules.yaml"
CASES = HERE / "rules.yaml"
NAMES = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian package prometheus)")
def test_promtool_agrees_with_every_case() -> None:
    done = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_seen_to_fire(name: str) -> None:
    tried = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert any(case["exp_alerts"] for case in tried if case["alertname"] == name)


def test_the_alerts_use_metrics_that_there_are() -> None:
    document = (HERE.parent.parent / "docs" / "metrics.md").read_text()
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    used = {name for rule in rules for name in re.findall(r"\bsniproxy_\w+", rule["expr"])}
    assert used
    assert [name for name in sorted(used) if f"`{name}`" not in document] == []
