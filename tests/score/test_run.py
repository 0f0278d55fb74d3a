"""`chopjax score` from the command line: files, tables, mistakes, kills, and no torch."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoints
import local_tasks
import pytest
from lm_eval.loggers import EvaluationTracker

from chopjax.cli import main

WITHOUT_TORCH = Path(__file__).parents[1] / "without_torch.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    checkpoints.write_checkpoint(folder, "llama", vocab_size=300, max_position_embeddings=64)
    return checkpoints.write_tokenizer(folder, vocab_size=300)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_tasks.write_tasks(tmp_path_factory.mktemp("tasks"))


def flags(model: Path, tasks: Path, output: Path, names: str = "tiny_choice") -> list[str]:
    include = ["--include-path", str(tasks)]
    return ["score", str(model), "--tasks", names, *include, "--output", str(output)]


def test_files_are_those_of_the_harness(
    tiny: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "tiny_choice,tiny_rolling"
    arguments = [*flags(tiny, tasks, tmp_path / "ours", names), "--log-samples", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    (folder,) = (tmp_path / "ours").iterdir()
    (results,) = folder.glob("results_*.json")
    found = json.loads(results.read_text())
    assert printed["results"] == found["results"]
    assert found["results"]["tiny_choice"]["sample_len"] == 6
    assert found["chance"]["tiny_choice"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert found["chance"]["tiny_rolling"] is None
    assert not list(folder.glob("journal-*"))
    # The same run of the harness itself, written by its own tracker.
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    theirs = harness_run(tiny, tasks, names.split(","), tracker)
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(theirs, samples)
    for task in samples:
        tracker.save_results_samples(task, samples[task])
    (their_folder,) = (tmp_path / "theirs").iterdir()
    assert folder.name == tiny.name
    (their_results,) = their_folder.glob("results_*.json")
    expected = json.loads(their_results.read_text())
    assert set(expected) <= set(found)
    assert set(expected["config"]) <= set(found["config"]) | {"batch_sizes", "use_cache"}
    for key in ("versions", "n-shot", "higher_is_better", "n-samples", "task_hashes", "configs"):
        assert found[key] == expected[key]
    for task in samples:
        (mine,) = folder.glob(f"samples_{task}_*.jsonl")
        (other,) = their_folder.glob(f"samples_{task}_*.jsonl")
        assert mine.read_text() == other.read_text()
    # `compare` reads both, and finds them equal on the same documents.
    assert main(["compare", str(their_results), str(folder), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    cells = {row["task"]: row["cells"][1] for row in compared["tasks"]}
    assert set(cells) == {"tiny_choice", "tiny_rolling"}
    assert all(cell["difference"] == 0 and cell["p"] == 1 for cell in cells.values())
    assert compared["notes"] == []


def harness_run(model: Path, tasks: Path, names: list[str], tracker: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(
        "chopjax",
        {"pretrained": str(model), "dtype": "float32"},
        names,
        task_manager=manager,
        evaluation_tracker=tracker,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--tasks": "tiny_choise"}, "did you mean tiny_choice"),
        ({"--tasks": ","}, "no tasks"),
        ({"--include-path": "nowhere"}, "nowhere: no such folder"),
        ({"--limit": "0"}, "--limit 0"),
        ({"--max-length": "65"}, "the context length is 64"),
        ({"--num-fewshot": "-1"}, "--num-fewshot -1"),
    ],
)
def test_mistakes(
    change: dict[str, str],
    message: str,
    tiny: Path,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = flags(tiny, tasks, tmp_path / "out")[2:]
    given = dict(zip(said[::2], said[1::2], strict=True)) | change
    assert main(["score", str(tiny), *(part for item in given.items() for part in item)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nope", "--tasks", "piqa", "--output", "o"], "error: /nope: no such folder"),
        (["/nope", "--suite", "quick", "--data-dir", "no", "--output", "o"], "error: /nope: no su"),
        ([], "MODEL and --suite or --tasks and --output are missing"),
        (["/nope", "--tasks", "piqa"], "--output is missing"),
        (["/nope", "--taks", "piqa", "--output", "o"], "there is no flag --taks"),
    ],
)
def test_the_first_mistake_is_named_first(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["score", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_dataset_is_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = local_tasks.CHOICE.format(data="none.jsonl")
    text = text.replace("dataset_path: json", "dataset_path: someone/something")
    (tmp_path / "task.yaml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith("dataset_kwargs"))
    )
    assert main(flags(tiny, tmp_path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "tiny_choice" in error
    assert "someone/something" in error


@dataclasses.dataclass
class Run:
    process: subprocess.Popen
    folder: Path

    def answers(self) -> int:
        journals = list(self.folder.glob("journal-*.txt"))
        return journals[0].read_bytes().count(b"\n") - 1 if journals else 0


def start(model: Path, tasks: Path, output: Path) -> Run:
    command = [sys.executable, str(WITHOUT_TORCH), *flags(model, tasks, output)]
    process = subprocess.Popen(
        [*command, "--batch-size", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return Run(process, output / model.name)


def test_a_killed_run_scores_nothing_twice(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = 1000
    tasks = local_tasks.write_tasks(tmp_path / "tasks", documents=documents)
    first = start(tiny, tasks, tmp_path / "out")
    while first.process.poll() is None and first.answers() < 20:
        time.sleep(0.002)
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()
    known = first.answers()
    total = sum(2 + n % 3 for n in range(documents))
    assert 20 <= known < total, "killed too late to be of use"
    second = start(tiny, tasks, tmp_path / "out")
    out, error = second.process.communicate()
    assert second.process.returncode == 0, error
    # Requests come many times over here: an answer serves all that are equal.
    assert "known from the run before" in error
    left = int(error.split("score ")[1].split(" ")[0])
    assert left <= total - known
    undisturbed = flags(tiny, tasks, tmp_path / "other")
    assert main([*undisturbed, "--batch-size", "1", "--json"]) == 0
    assert json.loads(out)["results"] == json.loads(capsys.readouterr().out)["results"]


def test_no_torch(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    """Scoring runs where torch cannot be found, and does not ask for it where it can."""
    arguments = flags(tiny, tasks, tmp_path / "out", "tiny_choice,tiny_rolling")
    done = subprocess.run(
        [sys.executable, str(WITHOUT_TORCH), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tiny_choice" in done.stdout
