"""`python -m bench`: run the proxies side by side and print what they cost (README.md says how)."""

import argparse
import dataclasses
import functools
import json
import os
import platform
import resource
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import guard
from bench.network import Network, machine_network, own_network
from bench.processes import Cores, is_root
from bench.proxies import DEFAULT_PEERS, RECIPES, ProxyError, Recipe, started
from bench.report import Results, as_json, table, tally
from bench.sample import FULL, QUICK, Sample, Scale, Turns, Workload, finished, in_turns
from bench.stage import HERE, MissingToolError, Stage, staged
from bench.workloads import DEFAULT_WORKLOADS, WORKLOADS

QUICK_PEERS = ("nginx", "sniproxy")


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the proxies stop too
    scale = _scale(arguments)
    committed = guard.committed_ratios() if arguments.guard else {}
    if arguments.guard and not committed:
        print(
            "bench: no results are committed to compare with: git add --force bench/results/<time>.json",
            file=sys.stderr,
        )
        return 1
    programs = _find(arguments.peers or (QUICK_PEERS if arguments.quick or arguments.guard else DEFAULT_PEERS))
    if not programs:
        print("bench: none of the proxies is installed", file=sys.stderr)
        return 1
    try:
        network = machine_network() if arguments.machine_network else own_network()
        with staged(Cores.of_this_machine(), scale.sizes, proxy_protocol=arguments.proxy_protocol) as stage:
            about = _about(arguments, scale, programs, stage.cores, network)
            results, failures = _run(stage, programs, arguments.workloads, scale)
    except MissingToolError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    report = f"{_headline(about)}\n\n{table(results)}\n\n{tally(results)}.\n"
    path = _save(arguments.json, as_json(results, about | {"failures": failures}), report)
    print(f"\n{report}\nAll samples: {path}")
    if arguments.guard:
        judgements = guard.judge(results, committed)
        print("\n" + "\n".join(map(str, judgements)))
        return 1 if failures else guard.exit_status(judgements)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="less work, one round, and no other peer than nginx")
    parser.add_argument(
        "--guard",
        action="store_true",
        help=f"nginx and sniproxy, and fail if a ratio is more than {guard.GROWTH:.0%}% above the committed one",
    )
    parser.add_argument("--peers", type=_names(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument(
        "--workloads", type=_names(WORKLOADS), default=DEFAULT_WORKLOADS, help=f"of {', '.join(WORKLOADS)}"
    )
    rounds = f"default {FULL.rounds}, with --quick {QUICK.rounds}, with --guard {guard.ROUNDS}"
    parser.add_argument("--rounds", type=_positive, help=rounds)
    parser.add_argument("--rate", type=_positive, help=f"connections a second for latency, default {FULL.rate}")
    parser.add_argument(
        "--proxy-protocol",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a PROXY v2 header with a principal before each hello, for all proxies alike (default)",
    )
    parser.add_argument(
        "--machine-network",
        action="store_true",
        help="the machine's network and its settings, instead of a namespace with the kernel's",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default bench/results/<time>.json; the table is beside it"
    )
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
    wanted = QUICK if arguments.quick else FULL
    rounds = arguments.rounds or (guard.ROUNDS if arguments.guard else wanted.rounds)
    wanted = dataclasses.replace(wanted, rounds=rounds, rate=arguments.rate or wanted.rate)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # of this process, and so of all that it starts
    scale = wanted.within(hard) if hard != resource.RLIM_INFINITY else wanted
    if scale != wanted:
        _say(f"{hard:,} descriptors are too few for {wanted.idle:,} connections (ulimit -n): {scale.idle:,} it is")
    return scale


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
            began = time.monotonic()
            works = {
                peer: _work(stage, RECIPES[peer], program, WORKLOADS[name], scale, failures)
                for peer, program in programs.items()
                if RECIPES[peer].ours or not WORKLOADS[name].ours
            }
            for peer, sample in finished(in_turns(works)).items():
                results.add(name, peer, sample)
                _say(_progress(number, scale.rounds, name, peer, sample))
            _say(f"round {number}/{scale.rounds}  {name:<9} took {time.monotonic() - began:.1f} s")
    return results, failures


def _work(
    stage: Stage, recipe: Recipe, program: Path, workload: Workload, scale: Scale, failures: list[str]
) -> Turns[Sample | None]:
    """One sample, if the proxy does not fail."""
    try:
        return (yield from workload.run(functools.partial(started, recipe, program, stage), scale))
    except ProxyError as error:
        failures.append(f"{workload.name}: {error}")
        _say(failures[-1])
        return None


def _progress(number: int, rounds: int, workload: str, peer: str, sample: Sample | None) -> str:
    values = "  ".join(f"{key} {value:.1f}" for key, value in sample.values.items()) if sample else "failed"
    said = [f"{problem.kind}: {problem.detail}" for problem in sample.problems] if sample else []
    problems = f"  [{'; '.join(said)}]" if said else ""
    return f"round {number}/{rounds}  {workload:<9} {peer:<14} {values}{problems}"


def _about(
    arguments: argparse.Namespace, scale: Scale, programs: dict[str, Path], cores: Cores, network: Network
) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "cores": dataclasses.asdict(cores),
        "network": str(network),
        "python": platform.python_version(),
        "unprivileged": not is_root() or "started by root, run as nobody",
        "proxy_protocol": arguments.proxy_protocol,
        "scale": dataclasses.asdict(scale),
        "versions": {peer: RECIPES[peer].version(program) for peer, program in programs.items()},
    }


def _headline(about: dict[str, Any]) -> str:
    rounds, rate, seconds = (about["scale"][key] for key in ("rounds", "rate", "latency_seconds"))
    paced = rounds * rate * seconds
    header = "a PROXY v2 header" if about["proxy_protocol"] else "no PROXY header"
    versions = ", ".join(f"{RECIPES[peer].title} {version}" for peer, version in about["versions"].items())
    return (
        f"{versions}.\n"
        f"{about['cpu']}, {about['cpus']} cores, Linux {about['kernel']}, Python {about['python']}; "
        f"{about['network']}; {header}. Rounds: {rounds}; latency at {rate:,} connections a second, {paced:,} in all.\n"
        "Cells: median (least-greatest) **ratio to nginx**; lower is better."
    )


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _save(path: Path | None, document: dict[str, Any], report: str) -> Path:
    if path is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = HERE / "results" / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(report)
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
