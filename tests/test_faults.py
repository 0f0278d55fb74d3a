"""Whatever is damaged, chopjax ends with 0 or 2 and one clear message (fault_runner.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_targets import TARGETS

TESTS = Path(__file__).parent
CASES = {"checkpoints": 60, "runs": 20}  # of a target; of the others 30
# Targets that share a process, for its imports take longer than a hundred cases.
REST = sorted(TARGETS.keys() - {"checkpoints"})
TOGETHER = [
    (["checkpoints"], 0),
    pytest.param(["checkpoints"], CASES["checkpoints"], marks=pytest.mark.thorough),
    pytest.param(REST, 0, marks=pytest.mark.thorough),
]


def test_kinds_of_faults() -> None:
    assert len(TARGETS["checkpoints"].faults) >= 25


@pytest.mark.parametrize(("targets", "first"), TOGETHER, ids=["checkpoints", "more", "the others"])
def test_manners(targets: list[str], first: int) -> None:
    """In a process of its own, whose forks must not inherit threads of other tests.

    first: the number of the first case.
    """
    command = [sys.executable, str(TESTS / "fault_runner.py"), "--seed=1", f"--first={first}"]
    command += [f"{target}:{first + CASES.get(target, 30)}" for target in targets]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    bad = [
        f"{r['target']}, case {r['number']}, {r['fault']} ({r['did']}): {o['argv'][0]}: "
        f"{o['problems']}"
        for r in results
        for o in r["outcomes"]
        if o["problems"]
    ]
    assert not bad, "\n".join(bad)
    for target in targets:
        cases = [r for r in results if r["target"] == target]
        assert len(cases) == CASES.get(target, 30)
        codes = {o["code"] for r in cases for o in r["outcomes"]}
        assert codes == {0, 2}  # some faults change nothing that is read; most are refused
