"""The suites: what is in them, their local data, their figures, and mistakes."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import checkpoints
import lm_eval
import numpy as np
import pytest
import suite_data
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sklearn.metrics import f1_score

from chopjax.cli import main
from chopjax.commands.score import SUITES as NAMES
from chopjax.errors import UserError
from chopjax.score.tasks import HARNESS, SUITES, load_tasks

JUST_CHOP = {  # METHODS: normalised by characters, or plain
    "piqa": "acc_norm",
    "hellaswag": "acc_norm",
    "openbookqa": "acc_norm",
    "winogrande": "acc",
    "sciq": "acc",
    "arc_easy": "acc",
}
V1 = JUST_CHOP | {
    "boolq": "acc_pmi_dc",
    "arc_challenge": "acc_pmi_dc",
    "copa": "acc",
    "rte": "acc_norm",
    "cb": "acc",
    "mrpc": "f1",
    "sst2": "acc",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    checkpoints.write_checkpoint(folder, "llama", vocab_size=300, max_position_embeddings=256)
    return checkpoints.write_tokenizer(folder, vocab_size=300)


def test_the_command_names_the_files() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in SUITES.glob("*.yaml"))


def scored(
    model: Path, data: Path, output: Path, suite: str, *more: str
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(results, samples by task) as they lie on disk."""
    flags = ["--suite", suite, "--data-dir", str(data), "--output", str(output), "--log-samples"]
    assert main(["score", str(model), *flags, *more]) == 0
    (path,) = output.rglob("results_*.json")
    samples = {
        file.name.removeprefix("samples_").rpartition("_")[0]: [
            json.loads(line) for line in file.read_text().splitlines()
        ]
        for file in path.parent.glob("samples_*.jsonl")
    }
    return json.loads(path.read_text()), samples


def test_v1(tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, samples = scored(tiny, data, tmp_path / "out", "just_chop_v1")
    table = capsys.readouterr().out
    assert "mean of 13" in table
    assert "acc_pmi_dc" in table
    figures = results["results"]
    for task, metric in V1.items():
        assert [key for key in figures[task] if "," in key and "stderr" not in key] == [
            f"{metric},none"
        ]
        assert results["n-shot"][task] == 0
    means = [figures[task][f"{metric},none"] for task, metric in V1.items()]
    errors = [figures[task][f"{metric}_stderr,none"] for task, metric in V1.items()]
    mean = results["groups"]["just_chop_v1"]
    assert mean["mean,none"] == pytest.approx(statistics.fmean(means))
    assert mean["mean_stderr,none"] == pytest.approx(math.hypot(*errors) / 13)
    assert mean["mean_of"] == V1
    # Domain-conditional PMI by hand, and the requests that it is made of.
    for sample in samples["boolq"]:
        arguments = list(sample["arguments"].values())
        assert [a["arg_1"] for a in arguments] == [" no", " yes"] * 2
        assert arguments[0]["arg_0"].endswith("Question: is it so?\nAnswer:")
        assert arguments[2]["arg_0"] == "Answer:"
        no, yes, no_alone, yes_alone = (float(resp[0]) for resp in sample["filtered_resps"])
        said = int(np.argmax([no - no_alone, yes - yes_alone]))
        assert sample["acc_pmi_dc"] == float(said == int(sample["target"]))
    assert results["chance"]["boolq"] == 0.5
    assert results["chance"]["cb"] == pytest.approx(1 / 3)
    assert results["chance"]["mrpc"] is None
    gold, answers = zip(*(sample["f1"] for sample in samples["mrpc"]), strict=True)
    assert figures["mrpc"]["f1,none"] == pytest.approx(f1_score(gold, answers, zero_division=0))
    # C4's place: the figures of `chopjax perplexity` on the same file.
    file = data / "c4" / "validation.jsonl"
    assert main(["perplexity", str(tiny), "--data", str(file), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    for metric in ("nats_per_token", "perplexity", "loss_over_log_vocabulary", "bits_per_byte"):
        assert figures["c4"][f"{metric},none"] == pytest.approx(alone[metric])
    sums = np.sum([sample["nats_per_token"] for sample in samples["c4"]], axis=0)
    assert -sums[0] / sums[1] == pytest.approx(alone["nats_per_token"])
    assert sums[1] == alone["tokens"]


def test_without_and_a_text_of_the_users(
    tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "own.txt"
    text.write_text("the cat sat on the mat")
    out = tmp_path / "out"
    left_out = ["--without", "hellaswag,sciq,c4", "--text", str(text), "--limit", "2"]
    results, samples = scored(tiny, data, out, "just_chop", *left_out)
    assert "mean of 4 (without hellaswag, sciq)" in capsys.readouterr().out
    assert set(results["results"]) == {*JUST_CHOP, "just_chop", "own.txt"} - {"hellaswag", "sciq"}
    assert len(samples["piqa"]) == 2
    assert results["chance"]["just_chop"] == pytest.approx((0.5 + 0.25 + 0.5 + 0.25) / 4)


def test_a_suites_tasks_are_the_harness_own(data: Path) -> None:
    """just_chop and quick: names, metrics and no examples; quick is cut at 200 documents."""
    loaded = load_tasks(["just_chop"], data_dir=data)
    assert {n: next(iter(t._metric_fn_list)) for n, t in loaded["tasks"].items()} == JUST_CHOP
    assert loaded["groups"]["just_chop"].metadata["perplexity"]["tokens"] == 13_200_000
    quick = load_tasks(["quick"], data_dir=suite_data.write(data / "many", rows=10))
    assert {len(task.eval_docs) for task in quick["tasks"].values()} == {10}


def test_quick_is_cut(tmp_path: Path) -> None:
    rows = [{"goal": f"{n}", "sol1": "a", "sol2": "b", "label": 0} for n in range(250)]
    suite_data.put(tmp_path, "piqa", "validation", rows)
    left = ["arc_easy", "openbookqa", "winogrande"]
    loaded = load_tasks(["quick"], data_dir=tmp_path, without=left)
    assert [doc["goal"] for doc in loaded["tasks"]["piqa"].eval_docs] == [
        str(n) for n in range(200)
    ]


def requests(task: Task, limit: int) -> list[tuple[Any, ...]]:
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def test_requests_are_those_of_the_local_tasks(shared: Path) -> None:
    """Prompts of the harness's own task files over --data-dir, against task files that restate
    them. MMLU with 5 examples."""
    names = "piqa hellaswag openbookqa winogrande arc_easy boolq arc_challenge copa rte cb sst2"
    folder = shared / "tasks"
    manager = TaskManager(include_path=str(folder / "lm_eval"), include_defaults=False)
    ours = load_tasks(names.split(), data_dir=folder)["tasks"]
    ours |= load_tasks(["mmlu_anatomy"], num_fewshot=5, data_dir=folder)["tasks"]
    for name, task in ours.items():
        theirs = manager.load([f"local_{name}"])["tasks"][f"local_{name}"]
        theirs.set_config(key="num_fewshot", value=5 if name == "mmlu_anatomy" else 0)
        theirs.set_fewshot_seed(seed=1234)
        found, expected = requests(task, 40), requests(theirs, 40)
        assert found == expected, name
        assert len(found) >= 40


def test_deeper_layers(shared: Path) -> None:
    loaded = load_tasks(["deeper_layers"], data_dir=shared / "tasks", without=["c4"])
    shots = {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()}
    assert shots.pop("boolq") == 0
    assert set(shots.values()) == {5}
    assert len(shots) == 57


def test_all_missing_files_are_named_at_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text(
        (data / "piqa" / "validation.jsonl").read_text()
    )
    with pytest.raises(UserError) as caught:
        load_tasks(["just_chop"], data_dir=tmp_path)
    message = str(caught.value)
    assert "6 files" in message
    assert f"{tmp_path}/sciq/test.jsonl: dataset allenai/sciq, split test" in message
    assert (
        "winogrande/validation.jsonl: dataset allenai/winogrande, config winogrande_xl" in message
    )
    assert "c4/validation.jsonl: text of hf:allenai/c4/en:validation" in message
    assert "piqa" not in message.replace(str(tmp_path), "")
    with pytest.raises(
        UserError, match=r"mmlu/test.jsonl: dataset cais/mmlu, config all, split te"
    ):
        load_tasks(["mmlu_anatomy"], data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"goal": "x"', "line 1"),
        ("[1]", "line 1: not a JSON object"),
        ("", "no rows"),
        ('{"goal": "x", "sol1": "y", "label": 0}', "no column sol2; it has goal, label, sol1"),
    ],
)
def test_files_that_are_not_right(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        load_tasks(["piqa"], data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("piqa", {"sol1": None}, "line 5: sol1 is missing or has a null"),
        ("piqa", {"label": None}, "line 5: label is missing or has a null"),
        ("piqa", {"label": 2}, "2 is the answer, and none of 2 choices"),
        ("piqa", {"label": -1}, "-1 is the answer, and none of 2 choices"),
        ("hellaswag", {"ctx_b": None}, "hellaswag: its documents in --data-dir are not like those"),
        ("winogrande", {"answer": "7"}, "winogrande cannot use the document .*KeyError|'7'"),
        ("winogrande", {"sentence": "no gap"}, "winogrande cannot use the document"),
        ("copa", {"question": "why"}, "copa cannot use the document .*why"),
    ],
)
def test_rows_that_no_question_can_be_made_of(
    name: str, row: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    """Before any forward pass, and with the file's name."""
    lines = (data / name / "validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    suite_data.put(tmp_path, name, "validation", [*rows, rows[0] | row])
    with pytest.raises(UserError, match=message) as caught:
        requests(load_tasks([name], data_dir=tmp_path)["tasks"][name], 5)
    assert name in str(caught.value)


def test_examples_need_their_file(data: Path) -> None:
    with pytest.raises(UserError, match=r"piqa/train.jsonl: dataset baber/piqa, split train"):
        load_tasks(["piqa"], num_fewshot=3, data_dir=data)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "just_shop"], "did you mean just_chop"),
        ([], "--suite or --tasks is missing"),
        (["--suite", "quick", "--tasks", "piqa"], "not allowed with"),
        (["--suite", "quick", "--data-dir", "nowhere"], "--data-dir nowhere: no such folder"),
        (["--suite", "quick", "--without", "pika"], "--without pika: not in quick; in it are"),
        (["--tasks", "boolq,just_chop_v1", "--data-dir", "{data}"], "scores boolq otherwise"),
        (["--suite", "quick", "--data-dir", "{data}", "--text", "no.txt"], "no.txt: no such file"),
    ],
)
def test_mistakes(
    flags: list[str],
    message: str,
    tiny: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.format(data=data) for word in flags]
    try:
        code = main(["score", str(tiny), *words, "--output", str(tmp_path / "out")])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_generative_beside_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The task files of the harness over the same rows, through its hf backend: texts, answers read
    out of them, and metrics. What the model says is right for the first document of each task."""
    checkpoints.write_checkpoint(
        tmp_path / "m", vocab_size=300, num_hidden_layers=1, max_position_embeddings=768
    )
    checkpoints.write_tokenizer(tmp_path / "m", vocab_size=300)
    data, own = suite_data.write(tmp_path / "data", rows=2), tmp_path / "own"
    _, said = scored(tmp_path / "m", data, tmp_path / "first", "generative")
    answers = {name: samples[0]["filtered_resps"][0] for name, samples in said.items()}
    right = suite_data.gsm8k(0, answers["gsm8k"])
    suite_data.put(data, "gsm8k", "test", [right, suite_data.gsm8k(1)])
    right = suite_data.triviaqa(0, answers["triviaqa"])
    suite_data.put(data, "triviaqa", "validation", [right, suite_data.triviaqa(1)])
    results, samples = scored(tmp_path / "m", data, tmp_path / "out", "generative")
    own.mkdir()
    for name, file in (("gsm8k", "gsm8k.yaml"), ("triviaqa", "default.yaml")):
        rows = {path.stem: str(path) for path in (data / name).iterdir()}
        local = {"dataset_path": "json", "dataset_kwargs": {"data_files": rows}}
        text = {"include": str(HARNESS / name / file), "dataset_name": None, **local}
        (own / f"{name}.yaml").write_text(json.dumps(text))
    theirs = lm_eval.simple_evaluate(
        HFLM(str(tmp_path / "m"), device="cpu", dtype="float32", batch_size=2),
        tasks=["gsm8k", "triviaqa"],
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
        bootstrap_iters=0,
    )
    for name, expected in theirs["results"].items():
        found = results["results"][name]
        metrics = [key for key in expected if key.startswith("exact_match,")]
        assert {key: found[key] for key in metrics} == {key: expected[key] for key in metrics}
        assert found[metrics[0]] == 0.5
        for mine, other in zip(samples[name], theirs["samples"][name], strict=True):
            assert mine["arguments"]["gen_args_0"]["arg_0"] == other["arguments"][0][0]
            assert mine["resps"] == other["resps"]
            assert mine["filtered_resps"] == list(other["filtered_resps"])
    assert results["n-shot"] == {"gsm8k": 5, "triviaqa": 0}
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "out"), "--json"]) == 2
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "first"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    assert [(row["task"], row["metric"], row["cells"][0]["value"]) for row in rows] == [
        ("gsm8k", "exact_match,strict-match", 0.5),
        ("triviaqa", "exact_match,remove_whitespace", 0.5),
    ]
