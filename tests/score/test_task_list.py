"""`chopjax score --list-tasks`: names that score takes, and what of a data folder is complete."""

from __future__ import annotations

import json
from pathlib import Path

import local_tasks
import pytest
import suite_data

from chopjax import transformers_alone
from chopjax.cli import main
from chopjax.errors import UserError
from chopjax.score.task_list import Listed, list_tasks
from chopjax.score.tasks import load_tasks


def test_names_and_patterns(tmp_path: Path) -> None:
    include = local_tasks.write_tasks(tmp_path)
    assert list_tasks(["tiny_*"], include) == [
        Listed("tiny_choice", "task", 1),
        Listed("tiny_rolling", "task", 1),
    ]
    found = list_tasks(["piqa", "mmlu", "just_chop", "ai2_arc"])
    assert [(each.name, each.kind, each.tasks) for each in found] == [
        ("just_chop", "suite", 6),
        ("mmlu", "group", 57),
        ("ai2_arc", "tag", 2),
        ("piqa", "task", 1),
    ]
    with pytest.raises(UserError, match=r"did you mean .*piqa"):
        list_tasks(["pika"])


def test_what_of_a_folder_is_complete(tmp_path: Path) -> None:
    data = suite_data.write(tmp_path)
    suite_data.put(data, "mmlu", "dev", [])
    (data / "copa" / "validation.jsonl").unlink()
    (data / "notes").mkdir()
    found = {each.name: each for each in list_tasks(data_dir=data)}
    assert found["piqa"].missing == ()
    assert found["copa"].missing == ("copa/validation.jsonl",)
    assert found["mmlu_anatomy"].missing == ("mmlu/test.jsonl",)
    assert found["just_chop"].missing == ()
    assert found["just_chop_v1"].missing == ("copa/validation.jsonl",)
    assert found["deeper_layers"].missing == ("mmlu/test.jsonl",)
    assert found["ai2_arc"].missing == ()
    assert "notes" not in found
    assert "lambada_openai" not in found
    # What is complete can be loaded, and what is not cannot.
    assert load_tasks(["ai2_arc"], data_dir=data)["tasks"].keys() == {"arc_easy", "arc_challenge"}
    with pytest.raises(UserError, match=r"copa/validation.jsonl"):
        load_tasks(["copa"], data_dir=data)


def test_metrics_that_are_models_have_their_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BERTScore's, say: a tokenizer that is built after the tasks hides torch from nobody."""
    monkeypatch.setattr(transformers_alone, "_alone", True)
    load_tasks(["piqa"], data_dir=suite_data.write(tmp_path))
    monkeypatch.setattr(transformers_alone, "_look_for_torch_in_vain", lambda: pytest.fail("hid"))
    transformers_alone.auto_tokenizer()


def test_files_of_examples_are_needed_where_there_are_shots(tmp_path: Path) -> None:
    """As many as the task wants, a group above it, or --num-fewshot."""
    data = suite_data.write(tmp_path)
    (data / "gsm8k" / "train.jsonl").unlink()
    suite_data.put(data, "mmlu", "test", [])

    def lacks(name: str, shots: int | None = None) -> tuple[str, ...] | None:
        (listed,) = list_tasks([name], data_dir=data, num_fewshot=shots)
        return listed.missing

    assert lacks("gsm8k") == lacks("generative") == ("gsm8k/train.jsonl",)
    assert lacks("gsm8k", 0) == ()
    assert lacks("mmlu") == ()
    assert lacks("mmlu", 2) == lacks("deeper_layers") == ("mmlu/dev.jsonl",)
    assert lacks("arc_easy", 2) == ("arc_easy/train.jsonl",)
    assert lacks("just_chop", 2) == (), "a suite without examples"
    # Scoring says the same, with where it is to be had.
    with pytest.raises(UserError, match=r"1 files are missing.*\n.*gsm8k/train.jsonl: .*/gsm8k, "):
        load_tasks(["generative"], data_dir=data)
    assert load_tasks(["gsm8k"], None, 0, data)["tasks"].keys() == {"gsm8k"}


def test_a_group_that_stands_in_another_s_file(tmp_path: Path) -> None:
    (listed,) = list_tasks(["mmlu_continuation"], data_dir=tmp_path)
    assert (listed.tasks, listed.missing) == (57, ("mmlu/test.jsonl",))
    with pytest.raises(UserError, match=r"1 files are missing.*\n.*mmlu/test.jsonl: "):
        load_tasks(["mmlu_continuation"], data_dir=tmp_path)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No model and no output are needed."""
    data = suite_data.write(tmp_path)
    words = ["score", "--list-tasks", "--tasks", "piqa,quick,sciq", "--data-dir", str(data)]
    (data / "sciq" / "test.jsonl").unlink()
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["quick", "suite", "4", "tasks", "complete"],
        ["piqa", "task", "complete"],
        ["sciq", "task", "lacks", "sciq/test.jsonl"],
    ]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[2]["missing"] == ["sciq/test.jsonl"]
    for more, message in (
        (["--tasks", "piqa", "--data-dir", "nowhere"], "--data-dir nowhere: no such folder"),
        (["--tasks", "pika"], "pika is not a task"),
        (["--include-path", "nowhere"], "nowhere: no such folder"),
    ):
        assert main(["score", "--list-tasks", *more]) == 2
        assert message in capsys.readouterr().err


def test_tasks_that_run_what_a_model_writes_are_refused(tmp_path: Path) -> None:
    include = local_tasks.write_tasks(tmp_path)
    task = include / "choice.yaml"
    task.write_text(task.read_text() + "unsafe_code: true\n")
    with pytest.raises(UserError, match="tiny_choice: runs code that the model writes"):
        load_tasks(["tiny_choice"], include)
