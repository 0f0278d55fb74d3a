"""chopjax needs no torch, and chopping needs no jax either."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import checkpoints

import chopjax

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(chopjax.__path__, prefix="chopjax.")
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_every_module_imports_without_torch() -> None:
    assert "chopjax.runs.pipeline" in MODULES
    assert "chopjax.score.harness" in MODULES
    imports = "\n".join(f"import {name}" for name in MODULES)
    done = run(f"import sys\nsys.modules['torch'] = None\n{imports}")
    assert done.returncode == 0, done.stderr


def test_reading_and_chopping_import_no_jax() -> None:
    names = (
        "chopjax.cli",
        "chopjax.models.parameters",
        "chopjax.models.families",
        "chopjax.checkpoint.source",
        "chopjax.checkpoint.hub",
        "chopjax.checkpoint.writer",
        "chopjax.checkpoint.summary",
        "chopjax.chop.stream",
        "chopjax.commands.chop",
        "chopjax.commands.inspect",
    )
    # What tokenises runs in several processes at once: they do without the hub, too.
    imports = "import chopjax.data.shards\nassert 'huggingface_hub' not in sys.modules\n"
    imports += "\n".join(f"import {name}" for name in names)
    heavy = "{'jax', 'torch', 'transformers', 'flax', 'orbax', 'tensorflow'} & set(sys.modules)"
    done = run(f"import sys\n{imports}\nprint(sorted({heavy}))")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_builds_tokenizers_without_torch(tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path / "model", 300)
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    code = (
        "import importlib.util, sys; from chopjax import cli; code = cli.main()\n"
        "assert 'transformers' in sys.modules and 'torch' not in sys.modules, 'torch is imported'\n"
        "assert importlib.util.find_spec('torch'), 'torch is found no more'\n"
        "sys.exit(code)"
    )
    words = ["prepare", "text.txt", "--tokenizer", "model", "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
