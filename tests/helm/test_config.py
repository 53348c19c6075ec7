"""The config and the policies of the chart, mounted as the kubelet does it: the proxy takes them, and their answers."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sniproxy.cli import run_command
from tests.support.clients import ask, fetch, hello_for, proxy_header, sleep_principal
from tests.support.helm import ROOT, VALUES, Document, Order, accepted, every_values_file, render, values_of
from tests.support.origins import Authority, page_of, tls_origin
from tests.support.pod import Pod, on_free_ports
from tests.support.proxy import running_proxy

SCENARIOS = ROOT / "config" / "scenarios"
FILES = sorted(path.stem for path in VALUES.glob("*.yaml"))
TABLES = [name for name in FILES if (SCENARIOS / name / "queries.yaml").is_file()]
SLEEP = sleep_principal("sleep")


def as_it_is(_config: Document) -> None:
    """The addresses of the pod are nobody's business where nothing listens."""


def mounted(root: Path, name: str) -> Pod:
    return Pod(root, accepted(every_values_file()[name]), as_it_is)


@pytest.mark.parametrize("name", FILES)
def test_check_finds_nothing_wrong_and_nothing_doubtful(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sniproxy check --strict` on what the pod gets."""
    code = run_command(["check", "--strict", "--config", str(mounted(tmp_path, name).config)])
    assert (code, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("name", TABLES)
def test_each_scenario_gives_the_answers_of_its_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables of config/scenarios, asked of the values file of the same name."""
    pod = mounted(tmp_path, name)
    asks_for_identity = yaml.safe_load(pod.config.read_text())["policy"].get("require_identity", False)
    queries = yaml.safe_load((SCENARIOS / name / "queries.yaml").read_text())
    if asks_for_identity:  # the values are stricter here than the scenario, which shows what is missed without
        queries = [query for query in queries if "principal" in query]
    table = tmp_path / "queries.yaml"
    table.write_text(yaml.safe_dump(queries))
    code = run_command(["explain", "--config", str(pod.config), "--file", str(table)])
    assert code == 0, capsys.readouterr()


def test_the_seeds_have_their_values() -> None:
    """Each story of the documents that this answers, under the name of its scenario."""
    assert {
        "wikipedia-open",
        "wikipedia-but-english",
        "wikipedia-by-caller",
        "wikipedia-by-caller-istio",
        "allow-nothing",
        "deny-by-namespace",
        "deny-by-principal",
        "deny-by-principal-tls",
        "registry-google-in-default",
    } <= set(TABLES)


def test_a_policy_of_another_namespace_and_one_kept_elsewhere_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """policiesByNamespace and policiesFrom: each ConfigMap is a folder, which the config names with its namespace."""
    values = {
        **values_of("deny-by-namespace"),
        "policiesFrom": [{"name": "team-a-policies", "namespace": "team-a"}, {"name": "shared"}],
    }
    (rendered,) = render([Order(values)])
    elsewhere = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"rules.yaml": "default: allow\n"},
        }
        for name in ("team-a-policies", "shared")
    ]
    together = replace(accepted(rendered), documents=(*rendered.documents, *elsewhere))
    pod = Pod(tmp_path, together, as_it_is)
    assert run_command(["check", "--strict", "--config", str(pod.config)]) == 0, capsys.readouterr().err
    files = yaml.safe_load(pod.config.read_text())["policy"]["files"]
    namespaces = [one["namespace"] if isinstance(one, dict) else None for one in files]
    assert namespaces == [None, "istio-system", "team-a", None]


@pytest.mark.e2e
def test_a_changed_configmap_reaches_the_running_proxy(tmp_path: Path, authority: Authority) -> None:
    """The kubelet swaps a link, of the policies and then of the config, and within a second the answer is another."""
    english, german = "en.wikipedia.org", "de.wikipedia.org"
    first = values_of("wikipedia-by-caller")
    second = {**first, "policies": {"policy.yaml": GERMAN_FOR_SLEEP}}
    third = {**second, "config": {"policy": {"outer_sni": "require_equal"}}}
    before, after, stricter = (accepted(one) for one in render([Order(first), Order(second), Order(third)]))
    with tls_origin(authority, english, german) as port:
        hosts = {name: [f"127.0.0.1:{port}"] for name in (english, german)}
        pod = Pod(tmp_path / "root", before, on_free_ports(tmp_path, {"upstream": {"hosts": hosts}}))
        with running_proxy(tmp_path, arguments=("--config", str(pod.config))) as proxy:
            header, trust = proxy_header(SLEEP), authority.client_context()
            assert ask(proxy.address, header, hello_for(german)) == "access_denied"
            pod.change(after)
            proxy.wait_for_generation(2)
            assert fetch(proxy.address, german, trust, header) == page_of(german)
            proxy.wait_for_finals(2)
            pod.change(stricter)
            proxy.wait_for_generation(3)
            assert ask(proxy.address, header, hello_for(german)) == "access_denied"
            assert proxy.wait_for_finals(3)[-1]["reason"] == "sni_mismatch"


GERMAN_FOR_SLEEP = f"""\
rules:
  - {{name: german, action: allow, principals: [{SLEEP}], sni: [de.wikipedia.org]}}
"""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()
