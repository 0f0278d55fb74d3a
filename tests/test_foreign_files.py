"""Not one byte of somebody else's is lost, moved or changed, whatever verb runs, killed or not.

A few cases of benchmarks/foreign_files.py with the verbs that are quick. For more:
CHOPJAX_FOREIGN_CASES=500 CHOPJAX_FOREIGN_VERBS=train,sweep,run,… pytest tests/test_foreign_files.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks/foreign_files.py"
CASES = os.environ.get("CHOPJAX_FOREIGN_CASES", "40")
VERBS = os.environ.get("CHOPJAX_FOREIGN_VERBS", "chop,export,import,compare")
SEED = os.environ.get("CHOPJAX_FOREIGN_SEED", "0")


@pytest.mark.thorough
def test_no_foreign_file_is_lost() -> None:
    command = [sys.executable, str(BENCHMARK), "--json"]
    command += ["--cases", CASES, "--verbs", VERBS, "--seed", SEED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-8000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ours"] == 1
    assert result["cases"] == int(CASES)
