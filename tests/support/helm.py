"""The chart, rendered and linted by real Helm.

Helm is a Go library here, which brings threads and signal handlers into the process that loads it: so it runs in a
process of its own (`python -m tests.support.helm`), asked and answering in JSON.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "sniproxy"
VALUES = ROOT / "helm" / "values"

GATEWAY = "istio-egressgateway-with-sni-proxy"
NAMESPACE = "istio-system"

Document = dict[str, Any]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """What Helm is asked for: these values, under this name, in this namespace."""

    values: Values = field(default_factory=dict)
    name: str = "sniproxy"
    namespace: str = NAMESPACE


@dataclass(frozen=True)
class Rendered:
    """What Helm answered: the objects and the notes, or why not; and what its linter says."""

    documents: tuple[Document, ...]
    notes: str
    refusal: str
    findings: tuple[str, ...]

    def every(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def the(self, kind: str, name: str = "") -> Document:
        """The one object of this kind, or of this kind and name."""
        (found,) = (one for one in self.every(kind) if name in ("", one["metadata"]["name"]))
        return found

    def container(self, name: str = "sni-proxy") -> Document:
        pod = self.the("Deployment")["spec"]["template"]["spec"]
        found: Document = next(one for one in pod["containers"] if one["name"] == name)
        return found


def render(orders: Sequence[Order]) -> list[Rendered]:
    """Each order, linted strictly and rendered."""
    asked = json.dumps([asdict(order) for order in orders])
    command = [sys.executable, "-m", "tests.support.helm"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return [_rendered(answer) for answer in json.loads(done.stdout)]


def render_one(values: Values, **more: str) -> Rendered:
    return render([Order(values, **more)])[0]


def accepted(rendered: Rendered) -> Rendered:
    assert rendered.refusal == ""
    return rendered


def values_of(name: str) -> Document:
    """The values of a file under helm/values."""
    loaded: Document = yaml.safe_load((VALUES / f"{name}.yaml").read_text())
    return loaded


@cache
def every_values_file() -> dict[str, Rendered]:
    """What Helm makes of each file under helm/values, by its name."""
    names = sorted(path.stem for path in VALUES.glob("*.yaml"))
    rendered = render([Order(values_of(name)) for name in names])
    return dict(zip(names, rendered, strict=True))


def _rendered(answer: Document) -> Rendered:
    documents, notes = [], ""
    for template, text in answer["manifests"].items():
        if template.endswith("NOTES.txt"):
            notes = text
        else:
            documents += [document for document in yaml.safe_load_all(text) if document]
    return Rendered(tuple(documents), notes, answer["refusal"], tuple(answer["findings"]))


def _answer(order: Document) -> Document:
    import helm_python  # noqa: PLC0415 - only in the process that is Helm's

    report = helm_python.lint(CHART, order["values"], strict=True, namespace=order["namespace"])
    findings = [f"{one['path']}: {one['error']}" for one in report["messages"] if one["severity"] > 1]
    manifests, refusal = {}, ""
    try:
        with helm_python.Chart.load(CHART) as chart:
            chart.validate_schema(order["values"])
            manifests = chart.render(order["values"], name=order["name"], namespace=order["namespace"])
    except helm_python.HelmError as error:
        refusal = str(error)
    return {"manifests": manifests, "refusal": refusal, "findings": findings}


if __name__ == "__main__":
    json.dump([_answer(order) for order in json.load(sys.stdin)], sys.stdout)
