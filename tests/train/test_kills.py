"""Runs killed at random instants, also in the middle of a save, end with the same bits.

A few rounds of benchmarks/kills.py, which takes a hundred.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/kills.py"


@pytest.mark.thorough
@pytest.mark.parametrize("of", [[], ["--adapters"]])
def test_killed_runs_end_with_the_same_bits(of):
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json", "--rounds", "4", "--steps", "30", *of],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ours"] == 1
    assert result["kills"] == 4
