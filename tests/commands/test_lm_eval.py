"""`chopjax lm-eval`: the harness's own command line, with the model `chopjax`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import checkpoints
import local_tasks
import pytest
from lm_eval.api.registry import model_registry

from chopjax.cli import main
from chopjax.commands import lm_eval, parser

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec.__func__
def without(cls, name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else find(cls, name, path, target)
PathFinder.find_spec = classmethod(without)
from chopjax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def results(folder: Path) -> dict[str, dict[str, float | str]]:
    (file,) = folder.glob("*/results_*.json")
    found = json.loads(file.read_text())["results"]
    return {task: {k: v for k, v in of.items() if "," in k} for task, of in found.items()}


def test_the_harness_says_what_chopjax_score_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    checkpoints.write_checkpoint(folder, "llama", vocab_size=300, max_position_embeddings=64)
    model = checkpoints.write_tokenizer(folder, vocab_size=300)
    tasks = local_tasks.write_tasks(tmp_path / "tasks")
    words = ["--model", "chopjax", "--model_args", f"pretrained={model},dtype=float32"]
    words += ["--tasks", "tiny_choice,tiny_rolling", "--include_path", str(tasks)]
    words += ["--output_path", str(tmp_path / "theirs")]
    command = [sys.executable, "-c", WITHOUT_TORCH, "lm-eval", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "|tiny_choice" in done.stdout
    names = ["--tasks", "tiny_choice,tiny_rolling", "--include-path", str(tasks)]
    output = str(tmp_path / "ours")
    assert main(["score", str(model), "--dtype", "float32", *names, "--output", output]) == 0
    ours, theirs = results(tmp_path / "ours"), results(tmp_path / "theirs")
    assert {"tiny_choice", "tiny_rolling"} == set(theirs)
    assert ours == theirs


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """With the harness's work left out, as far as it comes before the model is asked for."""
    code = """
import sys
from lm_eval.api.registry import get_model
from lm_eval import __main__ as harness
def evaluate():
    pairs = dict(word.split("=", 1) for word in sys.argv[1:])
    get_model("chopjax").create_from_arg_obj(pairs, {"batch_size": 1, "device": None})
harness.cli_evaluate = evaluate
from chopjax.cli import main
sys.exit(main(["lm-eval", *sys.argv[1:]]))
"""
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrained=/nowhere/x"], "/nowhere/x: no such folder"),
        *(
            pytest.param([words], said, marks=pytest.mark.thorough)
            for words, said in {
                "dtype=float32": "pretrained=MODEL is missing",
                "pretraind=x": "did you mean pretrained?",
            }.items()
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_model_ends_without_a_traceback(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("chopjax lm-eval: error: ")
    assert said in line


@pytest.mark.parametrize("words", [[], ["--help"], ["run", "--help"]], ids=" ".join)
def test_help_is_the_harness_s_and_an_example_of_ours(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.argv)
    if words:
        with pytest.raises(SystemExit) as ended:
            main(["lm-eval", *words])
        assert ended.value.code == 0
    else:
        assert main(["lm-eval"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lm-eval")
    assert shown.endswith(f"example:\n  {lm_eval.EXAMPLE}\n")
    assert sys.argv == before


def test_flags_are_the_harness_s(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--output-path", "--", "--config.seed=1", "-h"]
    assert parser.parse(["lm-eval", *words]).words == words
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", "run", "--model", "chopjax", "--frobnicate"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --frobnicate" in capsys.readouterr().err


def test_the_entry_point_names_the_same_model() -> None:
    """By which releases of the harness after 0.4.13 find it without us."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with pytest.raises(SystemExit):
        main(["lm-eval", "--help"])
    point = project["entry-points"]["lm_eval.models"]["chopjax"]
    module, _, name = point.partition(":")
    registered = model_registry.get("chopjax")
    assert (registered.__module__, registered.__name__) == (module, name)
