"""`python -m bench`: run the proxies side by side and print what they cost (README.md says how)."""

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.processes import Cores, is_root
from bench.proxies import DEFAULT_PEERS, RECIPES, ProxyError, Recipe, started
from bench.report import Results, as_json, table
from bench.stage import HERE, MissingToolError, Stage, staged
from bench.workloads import DEFAULT_WORKLOADS, FULL, QUICK, WORKLOADS, Sample, Scale, Workload


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the proxies stop too
    scale = _scale(arguments)
    programs = _find(arguments.peers)
    if not programs:
        print("bench: none of the proxies is installed", file=sys.stderr)
        return 1
    try:
        with staged(Cores.of_this_machine(), scale.sizes, proxy_protocol=arguments.proxy_protocol) as stage:
            about = _about(arguments, scale, programs, stage.cores)
            results, failures = _run(stage, programs, arguments.workloads, scale)
    except MissingToolError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    path = _save(arguments.json, as_json(results, about | {"failures": failures}))
    print(f"\n{_headline(about)}\n\n{table(results)}\n\nAll samples: {path}")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="less work and fewer rounds: a minute for two peers")
    parser.add_argument("--peers", type=_names(RECIPES), default=DEFAULT_PEERS, help=f"of {', '.join(RECIPES)}")
    parser.add_argument(
        "--workloads", type=_names(WORKLOADS), default=DEFAULT_WORKLOADS, help=f"of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--rounds", type=_positive, help=f"default {FULL.rounds}, with --quick {QUICK.rounds}")
    parser.add_argument("--rate", type=_positive, help=f"connections a second for latency, default {FULL.rate}")
    parser.add_argument(
        "--proxy-protocol",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a PROXY v2 header with a principal before each hello, for all proxies alike (default)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="default bench/results/<time>.json")
    return parser


def _names(known: dict[str, Any]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = QUICK if arguments.quick else FULL
    return dataclasses.replace(scale, rounds=arguments.rounds or scale.rounds, rate=arguments.rate or scale.rate)


def _find(peers: tuple[str, ...]) -> dict[str, Path]:
    """Where each proxy is; those that are not here are named, and left out."""
    programs = {}
    for peer in peers:
        program = RECIPES[peer].find()
        if program is None:
            _say(f"{peer} is not installed, and is left out. It comes with: {RECIPES[peer].obtain}")
        else:
            programs[peer] = program
    return programs


def _run(
    stage: Stage, programs: dict[str, Path], workloads: tuple[str, ...], scale: Scale
) -> tuple[Results, list[str]]:
    """All rounds. A proxy that fails loses that sample, not the run."""
    results = Results(peers=tuple(programs), workloads=workloads)
    failures: list[str] = []
    for number in range(1, scale.rounds + 1):
        for name in workloads:
            for peer, program in programs.items():
                began = time.monotonic()
                sample = _undisturbed_sample(stage, RECIPES[peer], program, WORKLOADS[name], scale, failures)
                results.add(name, peer, sample)
                _say(_progress(number, scale.rounds, name, peer, sample, time.monotonic() - began))
    return results, failures


def _undisturbed_sample(
    stage: Stage, recipe: Recipe, program: Path, workload: Workload, scale: Scale, failures: list[str]
) -> Sample | None:
    """A sample; one that another program disturbed is taken again, once, whatever its figures were."""
    sample = _sample(stage, recipe, program, workload, scale, failures)
    if sample is None or not sample.disturbed:
        return sample
    return _sample(stage, recipe, program, workload, scale, failures)


def _sample(
    stage: Stage, recipe: Recipe, program: Path, workload: Workload, scale: Scale, failures: list[str]
) -> Sample | None:
    try:
        with started(recipe, program, stage) as proxy:
            return workload.run(proxy, scale)
    except ProxyError as error:
        failures.append(f"{workload.name}: {error}")
        _say(failures[-1])
        return None


def _progress(number: int, rounds: int, workload: str, peer: str, sample: Sample | None, seconds: float) -> str:
    values = "  ".join(f"{key} {value:.1f}" for key, value in sample.values.items()) if sample else "failed"
    said = [f"{problem.kind}: {problem.detail}" for problem in sample.problems] if sample else []
    problems = f"  [{'; '.join(said)}]" if said else ""
    return f"round {number}/{rounds}  {workload:<9} {peer:<14} {values}  ({seconds:.1f} s){problems}"


def _about(arguments: argparse.Namespace, scale: Scale, programs: dict[str, Path], cores: Cores) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cores": dataclasses.asdict(cores),
        "python": platform.python_version(),
        "unprivileged": not is_root() or "started by root, run as nobody",
        "proxy_protocol": arguments.proxy_protocol,
        "scale": dataclasses.asdict(scale),
        "versions": {peer: RECIPES[peer].version(program) for peer, program in programs.items()},
    }


def _headline(about: dict[str, Any]) -> str:
    header = "a PROXY v2 header" if about["proxy_protocol"] else "no PROXY header"
    versions = ", ".join(f"{RECIPES[peer].title} {version}" for peer, version in about["versions"].items())
    return (
        f"{versions}.\n"
        f"{about['cpu']}, {about['cpus']} cores, Linux {about['kernel']}, Python {about['python']}; {header}; "
        f"{about['scale']['rounds']} rounds, latency at {about['scale']['rate']} connections a second.\n"
        "Cells: median (least-greatest) **ratio to nginx**; lower is better."
    )


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _save(path: Path | None, document: dict[str, Any]) -> Path:
    if path is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = HERE / "results" / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
