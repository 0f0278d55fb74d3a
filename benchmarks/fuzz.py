"""Does chopjax keep its manners whatever it is given to read?

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--targets checkpoints,runs] [--jobs 2]
        [--json]

Good things (checkpoints of all families, imported ones, …) are damaged at random and run through
the commands that read them; tests/fault_runner.py says what must hold, tests/fault_targets.py
lists the targets. Prints how often each kind of fault befell each target, how many commands ended
with 0 and with 2, and every failure with the command that repeats it. Ends with 1 on any failure.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "tests" / "fault_runner.py"


def run(target: str, cases: int, seed: int, jobs: int) -> list[dict[str, Any]]:
    """All cases of a target, spread over `jobs` processes."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    results: list[dict[str, Any]] = []

    def collect(lines: Iterable[str]) -> None:
        for line in lines:
            results.append(json.loads(line))
            if len(results) % 500 == 0:
                print(f"{target}: {len(results)} of {cases} cases", file=sys.stderr)

    processes, threads = [], []
    for job in range(jobs):
        command = [sys.executable, str(RUNNER), target, f"--cases={cases}", f"--seed={seed}"]
        command += [f"--first={job}", f"--step={jobs}"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        assert process.stdout is not None
        thread = threading.Thread(target=collect, args=(process.stdout,))
        thread.start()
        processes.append(process)
        threads.append(thread)
    for thread in threads:
        thread.join()
    if any(process.wait() for process in processes) or len(results) != cases:
        sys.exit(f"{target}: a runner died; {len(results)} of {cases} cases ran")
    return sorted(results, key=lambda result: result["number"])


def table(target: str, results: list[dict[str, Any]]) -> str:
    """One line a kind of fault: cases, commands that ended with 0 and 2, failures."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        counts[result["fault"]]["cases"] += 1
        for outcome in result["outcomes"]:
            counts[result["fault"]][f"exit {outcome['code']}"] += 1
            counts[result["fault"]]["failures"] += bool(outcome["problems"])
    lines = [f"{target:24}{'cases':>8}{'exit 0':>8}{'exit 2':>8}{'failures':>10}"]
    for kind, count in sorted(counts.items()):
        numbers = f"{count['cases']:8}{count['exit 0']:8}{count['exit 2']:8}{count['failures']:10}"
        lines.append(f"{kind:24}{numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=10_000, help="over all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default="checkpoints,imports,stores,runs,results,analyses")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    targets = args.targets.split(",")
    # Most of what can go wrong goes wrong in a checkpoint that somebody else wrote.
    shares = [4 if name == "checkpoints" else 1 for name in targets]
    failed = 0
    totals = {}
    for name, share in zip(targets, shares, strict=True):
        cases = args.cases * share // sum(shares)
        results = run(name, cases, args.seed, args.jobs)
        bad = [(r, o) for r in results for o in r["outcomes"] if o["problems"]]
        failed += len(bad)
        totals[name] = {
            "cases": len(results),
            "kinds": len({r["fault"] for r in results}),
            "commands": sum(len(r["outcomes"]) for r in results),
            "failures": len(bad),
        }
        if not args.json:
            print(table(name, results), end="\n\n")
        for result, outcome in bad:
            number = result["number"]
            print(
                f"{name} {result['fault']} ({result['did']}): {' '.join(outcome['argv'])}\n"
                f"  {'; '.join(outcome['problems'])}\n"
                f"  python tests/fault_runner.py {name} --seed {args.seed} --first {number} "
                f"--cases {number + 1}",
                file=sys.stderr,
            )
    if args.json:
        print(json.dumps(totals))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
