"""lm_eval knows the model `chopjax`: by the hook of a wheel, and by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hook_registers_beside_the_others() -> None:
    program = """
import sys
import chopjax.score.registration
from lm_eval.api.registry import get_model, model_registry
assert get_model("chopjax").__name__ == "ChopjaxLM"
assert "hf" in model_registry and "dummy" in model_registry
print(not any(name.startswith("chopjax.models") for name in sys.modules))
"""
    assert run(program).strip() == "False"  # by then the model has been asked for


def test_the_hook_costs_python_nothing() -> None:
    """It runs whenever Python starts: no module of ours or of weight comes with it."""
    program = """
import sys
before = set(sys.modules)
import chopjax.score.registration
print(sorted(set(sys.modules) - before))
"""
    assert run(program).strip() == str(["chopjax", "chopjax.score", "chopjax.score.registration"])


def test_the_entry_point_and_the_hook_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    point = project["entry-points"]["lm_eval.models"]["chopjax"]
    assert point in (ROOT / "chopjax" / "score" / "registration.py").read_text()


def test_the_wheel_brings_the_hook(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    # A copy: building leaves folders behind.
    kinds = ("*.py", "*.toml", "*.pth", "*.in", "*.yaml", "LICENSE", "README.md")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *kinds],
        check=True,
        capture_output=True,
        text=True,
    )
    source = tmp_path / "source"
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = tmp_path / done.stdout.split()[-1]
    assert "chopjax_lm_eval.pth" in zipfile.ZipFile(wheel).namelist()
