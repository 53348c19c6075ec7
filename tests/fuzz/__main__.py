"""`make fuzz`: each target for FUZZ_SECONDS, guided by coverage; or `python -m tests.fuzz TARGET...` for some of them.

What was found to reach new code is kept in build/fuzz, and the next run goes on from there. What makes a target fail is
kept as crash-*, timeout-* or oom-* in its folder of tests/data/corpus, where `make test` runs it from then on: mend the
cause, and commit the file with it.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import ROOT, TARGETS, Target

FOUND = ROOT / "build" / "fuzz"
_FAILURES = ("crash-*", "timeout-*", "oom-*", "leak-*")


def main(names: list[str]) -> int:
    known = {target.name: target for target in TARGETS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no target {', '.join(unknown)}; the targets are {', '.join(known)}", file=sys.stderr)
        return 2
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    failed = [name for name in names or known if not _run(known[name], seconds)]
    for name in failed:
        for path in _failures(known[name]):
            print(f"{name} fails for {path.relative_to(ROOT)}")
    print(f"{len(failed)} of {len(names or known)} targets failed.")
    return 1 if failed else 0


def _run(target: Target, seconds: int) -> bool:
    """In a process of its own, for atheris ends the one that it runs in."""
    print(f"--- {target.name}, {seconds} seconds", flush=True)
    folder = FOUND / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in target.seeds().items():
        (folder / f"seed-{name}").write_bytes(data)
    command = [
        *(sys.executable, "-m", "tests.fuzz.under_atheris", target.name),
        *(f"-max_total_time={seconds}", f"-artifact_prefix={target.corpus}/"),
        *("-timeout=20", "-rss_limit_mb=2048", "-max_len=8192", "-print_final_stats=1", "-verbosity=0"),
        str(folder),
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _failures(target: Target) -> list[Path]:
    return sorted(path for pattern in _FAILURES for path in target.corpus.glob(pattern))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
