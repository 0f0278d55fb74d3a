"""The whole way on a tiny model: once, again, after a kill, and with other settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers

from chopjax import __version__, cli
from chopjax.disk.mark import begin_mark
from chopjax.score.engine import Engine

RECIPE = """
from chopjax.pipeline_settings import default_config


def get_config():
    config = default_config()
    config.text.workers = 1
    config.chop.strategy = "input"
    config.chop.remove = "2"
    config.heal.total_steps = 6
    config.heal.data.batch_size = 4
    config.heal.data.sequence_length = 32
    config.heal.optimizer.peak_learning_rate = 1e-3
    config.heal.evaluation.every = 3
    config.heal.checkpoints.every = 2
    config.heal.log.tensorboard = False
    config.score.tasks = "pick"
    config.score.latency_length = 16
    return config
"""
TASK = """
task: pick
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent, texts, a task and a recipe."""
    folder = tmp_path_factory.mktemp("material")
    checkpoints.write_checkpoint(folder / "parent", "llama", tie_word_embeddings=True)
    checkpoints.write_tokenizer(folder / "parent")
    sentence = "the cat sat on the mat, and the dog sat on the cat. "
    for name, count in (("train", 60), ("held_out", 4)):
        lines = [json.dumps({"text": sentence * (3 + i % 5)}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [{"context": "the cat", "endings": ["sat", "mat"], "label": i % 2} for i in range(6)]
    (folder / "tasks").mkdir()
    data = folder / "tasks" / "pick.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "tasks" / "pick.yaml").write_text(TASK.format(data=data))
    (folder / "recipe.py").write_text(RECIPE)
    return folder


def arguments(material: Path, workdir: Path, *more: str) -> list[str]:
    return [
        "run",
        f"--config={material / 'recipe.py'}",
        f"--workdir={workdir}",
        f"--config.model={material / 'parent'}",
        f"--config.text.train={material / 'train.jsonl'}",
        f"--config.text.held_out={material / 'held_out.jsonl'}",
        f"--config.score.include_path={material / 'tasks'}",
        "--json",
        *more,
    ]


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


SEARCHED = [  # what SLEB looks at is short
    "--config.chop.strategy=sleb", "--config.score.tasks=",
    "--config.calibration.sequences=4", "--config.calibration.sequence_length=16",
]  # fmt: skip
WITHOUT_TORCH = Path(__file__).parents[1] / "without_torch.py"


def command(material: Path, workdir: Path) -> list[str]:
    """A process of its own, in which torch cannot be imported."""
    return [sys.executable, str(WITHOUT_TORCH), *arguments(material, workdir)]


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    subprocess.run(command(material, workdir), check=True, stdout=subprocess.DEVNULL, timeout=600)
    (workdir / "report.json").rename(workdir / "first.json")
    return workdir


def test_a_run_leaves_all_that_it_promises(finished: Path, material: Path) -> None:
    report = json.loads((finished / "first.json").read_text())
    parent, chopped, healed = (report["models"][n] for n in ("parent", "chopped", "healed"))
    assert report["kept_layers"] == [0, 3]
    assert [m["layers"] for m in (parent, chopped, healed)] == [4, 2, 2]
    assert parent["parameters"] > chopped["parameters"] == healed["parameters"]
    assert healed["document_loss"] < chopped["document_loss"], "six steps on one sentence must show"
    assert all(0 <= m["accuracies"]["pick acc"][0] <= 1 for m in (parent, chopped, healed))
    assert all(m["latency_seconds"] > 0 for m in (parent, chopped, healed))
    assert (finished / "healing.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text()
    assert "2 of its 4 layers" in page
    assert f"{healed['document_loss']:.4f}" in page
    assert "data:image/svg+xml" in page
    assert "chopjax run \\\n    --config" in page
    assert f"<footer><p>chopjax {__version__}</p></footer>" in page
    card = (finished / "healed" / "README.md").read_text()
    assert "0, 3" in card or "0,3" in card
    assert f"{healed['document_loss']:.4f}" in card
    assert f"{healed['window_loss']:.4f}" in card
    assert "pipeline_tag: text-generation" in card
    assert "6 steps, 768 tokens, all weights" in card
    provenance = json.loads((finished / "healed" / "chopjax.json").read_text())
    assert provenance["kept_layers"] == [0, 3]
    metrics = (finished / "heal" / "metrics.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, metrics) if "eval_loss" in row)
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(chopped["window_loss"], abs=1e-5)
    assert healed["window_loss"] == pytest.approx(report["healing"]["eval_loss"], abs=1e-5)
    assert set(report["conventions"]) == {"document_loss", "window_loss"}


def test_the_healed_checkpoint_loads_in_transformers(finished: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(finished / "healed")
    assert model.config.num_hidden_layers == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "healed")
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


def test_a_second_run_does_nothing_again(
    finished: Path, material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished / "healed" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    for path in (material / "train.jsonl", *(material / "parent").iterdir()):
        os.utime(path)  # the same bytes are the same input
    assert cli.main(arguments(material, finished)) == 0
    captured = capsys.readouterr()
    assert captured.err.count("done before") == 14
    assert weights.stat().st_mtime_ns == before
    assert json.loads(captured.out) == json.loads((finished / "first.json").read_text())
    assert json.loads(captured.out) == json.loads((finished / "report.json").read_text())


def test_a_changed_setting_redoes_what_depends_on_it(
    finished: Path, material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(material, finished, "--config.heal.total_steps=4")) == 0
    err = capsys.readouterr().err
    for stage in ("tokens-train", "score-parent", "chop", "score-chopped", "held-out-loss"):
        assert f"{stage}: done before" in err
    for stage in ("heal", "export", "score-healed", "latency"):
        assert f"{stage}: again" in err
    assert "total_steps was 6, is 4" in err
    (heal,), (healed,) = finished.glob("heal.2*"), finished.glob("healed.2*")
    assert (heal / "checkpoints" / "6" / "sha256.json").is_file(), "set aside, not deleted"
    assert (healed / "model.safetensors").is_file()


def test_a_damaged_record_costs_nothing(
    finished: Path, material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--config.heal.total_steps=4"]
    record = finished / "stages" / "heal.json"
    record.write_text('{"fing')
    assert cli.main(arguments(material, finished, *more)) == 2
    assert f"{record}: the stage's record is damaged" in capsys.readouterr().err
    record.unlink()
    assert cli.main(arguments(material, finished, *more)) == 0
    assert "heal: done before" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["chopped/notes.txt", "heal/notes.txt", "healed/notes.txt"])
def test_notes_among_its_results_are_not_lost_by_a_redo(
    finished: Path, material: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (finished / place).write_text("precious")
    more = ["--config.chop.remove=1"]
    assert cli.main(arguments(material, finished, *more)) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (finished / place).read_text() == "precious"
    assert not (finished / "stages" / "chop.json").read_text().count('"remove": 1')
    (finished / place).unlink()


def test_folders_that_others_made_are_named_before_any_work(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ("tokens/train", "tokens/held_out.partial")
    places = (*tokens, "chopped", "heal", "healed", "scores/parent")
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "mine").write_text("precious")
    assert cli.main(arguments(material, tmp_path)) == 2
    err = capsys.readouterr().err
    assert all(str(tmp_path / place) in err for place in places)
    assert all((tmp_path / place / "mine").read_text() == "precious" for place in places)
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    "name", ["report.json", "report.html", "healing.png", ".lock", ".chopjax.json", "stages"]
)
def test_files_of_its_names_are_not_written_over(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("precious")
    assert cli.main(arguments(material, tmp_path)) == 2
    assert str(tmp_path / name) in capsys.readouterr().err.replace(" holds ", "/")
    assert (tmp_path / name).read_text() == "precious"


def test_a_folder_of_another_verb_is_refused(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_mark(tmp_path, "sweep")
    assert cli.main(arguments(material, tmp_path)) == 2
    assert "folder of `chopjax sweep`" in capsys.readouterr().err


def with_more(material: Path) -> list[str]:
    """Another task, read from a data folder, and a text."""
    folder = material / "more"
    if not folder.exists():
        (folder / "data" / "nick").mkdir(parents=True)
        rows = [{"context": "the dog", "endings": ["sat on", "cat on"], "label": 0}] * 3
        (folder / "data" / "nick" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
        shutil.copytree(material / "tasks", folder / "tasks")
        text = TASK.replace("task: pick", "task: nick").format(data="nowhere.jsonl")
        (folder / "tasks" / "nick.yaml").write_text(text)
        (folder / "own.txt").write_text("the dog sat on the mat. " * 5)
    pick = folder / "data" / "pick"
    if not pick.exists():
        pick.mkdir()
        shutil.copyfile(material / "tasks" / "pick.jsonl", pick / "test.jsonl")
    return [
        f"--config.score.include_path={folder / 'tasks'}",
        f"--config.score.data_dir={folder / 'data'}",
        "--config.score.tasks=pick,nick",
        f"--config.score.text={folder / 'own.txt'}",
    ]


def test_added_tasks_and_texts_alone_are_measured(
    material: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir = tmp_path / "run"
    assert cli.main(arguments(material, workdir)) == 0
    first = report_of(capsys)
    planned: list[int] = []
    plan = Engine.plan

    def counted(self: Engine, requests: Any, *more: Any) -> Any:
        requests = list(requests)
        planned.append(len(requests))
        return plan(self, requests, *more)

    monkeypatch.setattr(Engine, "plan", counted)
    assert cli.main(arguments(material, workdir, *with_more(material))) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    for stage in ("score-parent", "chop", "held-out-loss", "heal", "export", "latency"):
        assert f"{stage}: done before" in captured.err
    for name in ("parent", "chopped", "healed"):
        old, new = first["models"][name], report["models"][name]
        assert {k: old[k] for k in old if k not in ("accuracies", "texts")} == {
            k: new[k] for k in new if k not in ("accuracies", "texts")
        }
        assert new["accuracies"]["pick acc"] == old["accuracies"]["pick acc"]
        assert 0 <= new["accuracies"]["nick acc"][0] <= 1
        assert new["texts"]["own.txt"]["perplexity"] > 1
        assert "natural logarithm" in new["texts"]["own.txt"]["convention"]
    card = (workdir / "healed" / "README.md").read_text()
    assert f"{report['models']['healed']['texts']['own.txt']['perplexity']:.2f}" in card

    # What was asked before is asked again without a request: with the tasks as they were, and
    # after a document that was added.
    planned.clear()
    assert cli.main(arguments(material, workdir, *with_more(material)[:3])) == 0
    assert sum(planned) == 0
    data = material / "more" / "data" / "nick" / "test.jsonl"
    row = {"context": "a cat", "endings": ["sat", "mat"], "label": 1}
    before = data.read_text()
    data.write_text(before + "\n" + json.dumps(row))
    assert cli.main(arguments(material, workdir, *with_more(material))) == 0
    data.write_text(before)
    assert "task nick was" in capsys.readouterr().err
    assert 0 < sum(planned) <= 3 * 2, "a new document has two choices, for each model"


def test_data_that_are_missing_are_named_before_any_work(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "data"
    empty.mkdir()
    more = ["--config.score.tasks=", "--config.score.suite=just_chop"]
    for flags, named in (
        ([*more, f"--config.score.data_dir={empty}"], "piqa/validation.jsonl"),
        ([*more, f"--config.score.data_dir={empty / 'none'}"], "no such folder"),
        (["--config.score.suite=just_chopp"], "'just_chopp' is not one of"),
        (["--config.score.text=nowhere.txt"], "nowhere.txt: no such file"),
        (["--config.score.tasks=pikc"], "pick"),
        (["--config.heal.compute.after_chop.remat=full"], "nothing is trained before the chop"),
        ([f"--config.score.data_dir={empty}", "--config.score.tasks="], "give score.tasks"),
    ):
        assert cli.main(arguments(material, tmp_path / "run", *flags)) == 2, flags
        captured = capsys.readouterr()
        assert named in captured.err
        assert "Traceback" not in captured.err
        assert not (tmp_path / "run").exists()


def test_training_before_the_chop_accumulates_optimizer_state(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--config.chop.after_steps=2", "--config.score.tasks="]
    assert cli.main(arguments(material, tmp_path / "run", *more)) == 0
    report = report_of(capsys)
    assert report["healing"]["kept_layers"] == [0, 3]
    assert report["models"]["healed"]["layers"] == 2
    provenance = json.loads((tmp_path / "run" / "healed" / "chopjax.json").read_text())
    assert provenance["kept_layers"] == [0, 3]


def test_layers_go_in_rounds_and_are_measured_in_each(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    more = ["--schedule=2x2", *SEARCHED]
    assert cli.main(arguments(material, workdir, *more)) == 0
    report = report_of(capsys)
    one, two = report["rounds"]
    assert [one["layers"], two["layers"]] == [3, 2]
    assert [one["steps"], two["steps"]] == [2, 6]
    assert set(two["kept_layers"]) < set(one["kept_layers"]) < set(range(4))
    assert report["kept_layers"] == two["kept_layers"]
    record = json.loads((workdir / "healed" / "chopjax.json").read_text())
    assert record["kept_layers"] == two["kept_layers"]
    assert record["parent"]["name"] == str(material / "parent")
    assert [step["step"] for step in record["history"]] == ["chop", "training"] * 2
    assert [step["settings"]["round"] for step in record["history"][::2]] == [1, 2]
    first, second = (
        json.loads((folder / "analysis" / "analysis.json").read_text())
        for folder in (workdir / "rounds" / "1", workdir)
    )
    assert (first["num_layers"], second["num_layers"]) == (4, 3)
    assert len(first["measures"]["sleb"]) == 1, "it is searched no deeper than is chopped"
    assert second["model"] == str(workdir / "rounds" / "1" / "healed"), "the healed one is measured"
    model = transformers.AutoModelForCausalLM.from_pretrained(workdir / "healed")
    assert model.config.num_hidden_layers == 2

    # What is lost is done again with all that builds on it, and nothing before it.
    shutil.rmtree(workdir / "rounds" / "1" / "healed")
    assert cli.main(arguments(material, workdir, *more)) == 0
    captured = capsys.readouterr()
    for stage in ("measure-1", "chop-1", "heal-1"):
        assert f"{stage}: done before" in captured.err
    assert "export-1: again" in captured.err
    assert json.loads(captured.out)["rounds"] == report["rounds"]


def test_a_search_is_as_deep_as_layers_go(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    more = [*SEARCHED, "--config.heal.total_steps=1"]

    def rounds(remove: int) -> list[dict[str, Any]]:
        assert cli.main(arguments(material, workdir, *more, f"--config.chop.remove={remove}")) == 0
        found = json.loads((workdir / "analysis" / "analysis.json").read_text())
        return found["measures"]["sleb"]

    (one,) = rounds(1)
    capsys.readouterr()
    two = rounds(2)
    assert [two[0], len(two)] == [one, 2]
    err = capsys.readouterr().err
    assert "measure: again, because it has too few rounds of sleb" in err
    assert "measured before: whole model, SLEB" in err
    assert rounds(1) == two
    assert "measure: done before" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_numbers(
    finished: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL while healing; then the same command ends with the losses of an undisturbed run."""
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(material, workdir),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while not list(workdir.glob("heal/checkpoints/2/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    assert cli.main(arguments(material, workdir)) == 0
    captured = capsys.readouterr()
    assert "heal: going on where it stopped" in captured.err
    assert "chop: done before" in captured.err
    ours = json.loads(captured.out)["models"]
    theirs = json.loads((finished / "first.json").read_text())["models"]
    for name in ("parent", "chopped", "healed"):
        assert ours[name]["document_loss"] == theirs[name]["document_loss"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("--config.model=/no/such/model", "/no/such/model"),
        ("--config.text.train=/no/such.jsonl", "no/such.jsonl"),
        ("--config.chop.remove=9", "9"),
        ("--config.chop.strategy=simmilarity", "'simmilarity' is not one of"),
        ("--schedule=3", "ROUNDSxSTEPS"),
        ("--schedule=3x5", "at most 2 rounds"),
        ("--config.heal.data.batch_sise=4", "batch_size"),
        ("--config.heal.total_steps=0", "total_steps"),
        ("--config.score.limit=1.5", "score.limit is 1.5"),
        ("--config.score.limit=-1", "score.limit is -1"),
    ],
)
def test_mistakes_are_named_before_any_work(
    wrong: str, named: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(material, tmp_path / "run", wrong)) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run" / "stages").exists()
