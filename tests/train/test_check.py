"""`chopjax train --check`: what is wrong or missing is told before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint, write_tokenizer
from fake_hub import Fault, running_hub
from train.runs import prepare, recipe

from chopjax.errors import UserError
from chopjax.train.check import check

RECIPE = Path(__file__).parents[2] / "configs" / "just_chop_llama2_7b.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("check"))


def test_what_the_run_will_be(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "work"
    check(recipe(made, "chop.keep=0,3", "chop.after_steps=4"), str(workdir), "here")
    said = capsys.readouterr().err
    assert "2 of 4 layers, all of them for 4 steps" in said
    assert "12 steps of 4 x 16 tokens, 768 in all, the stores hold 2,460" in said
    assert "not checked" not in said
    assert not workdir.exists()


def test_everything_that_is_wrong_at_once(made: Path):
    config = recipe(
        made, "data.train=/no/such", "data.sequence_length=4096", f"data.evaluation={made}/model"
    )
    with pytest.raises(UserError) as error:
        check(config, "gs://bucket/x", "here")
    for message in (
        "--workdir gs://bucket/x: a URL",
        "data.sequence_length 4096: the model has only",
        "data.train: /no/such: no such folder",
        "data.evaluation: ",
    ):
        assert message in str(error.value)


def test_a_teacher(made: Path, capsys: pytest.CaptureFixture[str]):
    check(recipe(made, "chop.keep=0,3", "teacher.model=parent"), "work", "here")
    said = capsys.readouterr().err
    assert f"teacher: {made / 'model'}, 4 layers" in said
    assert "not checked" not in said
    away = recipe(made, "teacher.model=/no/teacher")
    check(away, "/no/work", "elsewhere")
    assert "not checked: teacher.model /no/teacher: not on this" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"teacher.model: /no/teacher: no such folder"):
        check(away, "work", "here")
    with pytest.raises(UserError, match="no chop is recorded"):
        check(recipe(made, "teacher.model=parent"), "/no/work", "elsewhere")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=", "data.train: the token store to train on is missing"),
        ("chop.keep=0,9", "there is no layer 9"),
        ("model=/no/such", "/no/such: no such folder"),
    ],
)
def test_mistakes(made: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        check(recipe(made, override), "work", "here")


def test_a_store_of_another_tokenizer(made: Path, tmp_path: Path):
    model = write_checkpoint(tmp_path / "model", hidden_size=16, vocab_size=30)
    write_tokenizer(model, 30)
    with pytest.raises(UserError, match=r"data.train: .* the model has only 30"):
        check(recipe(made, f"model={model}"), "work", "here")


def test_what_lies_elsewhere_is_told(made: Path, capsys: pytest.CaptureFixture[str]):
    config = recipe(made, "model=/no/model", "data.train=/no/a=1,/no/b=2", "data.evaluation=")
    check(config, "/no/work", "elsewhere")
    said = capsys.readouterr().err
    assert "not checked: model /no/model: not on this machine" in said
    assert "not checked: data.train /no/a, /no/b: not on this machine" in said
    with pytest.raises(UserError, match="/no/model: no such folder"):
        check(config, "/no/work", "here")


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    flags = ["--config", str(RECIPE), "--workdir", "/no/work", "--config.data.train=/no/c4"]
    return subprocess.run(
        [sys.executable, "-m", "chopjax.cli", "train", *flags, "--check", "elsewhere", *arguments],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_a_gated_model_without_a_connection(tmp_path: Path):
    """Its shape is known all the same, and that it wants a token."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    } | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = command(environment)
    assert done.returncode == 2
    assert "meta-llama/Llama-2-7b-hf is gated, and there is no token" in done.stderr
    token = tmp_path / "mine"
    token.write_text("hf_x")
    done = command(environment | {"HF_TOKEN_PATH": str(token)})
    assert done.returncode == 0, done.stderr
    assert "16 of 32 layers, all of them for 500 steps" in done.stderr
    assert "the hub cannot be asked from here" in done.stderr
    done = command(environment, "--config.model=microsoft/phi-2", "--config.chop.after_steps=0")
    assert done.returncode == 0, done.stderr  # it is open to all
    assert "16 of 32 layers" in done.stderr
    done = command(environment | {"HF_TOKEN_PATH": str(token)}, "--config.chop.keep=0,40")
    assert done.returncode == 2
    assert "there is no layer 40" in done.stderr


def test_a_gated_model_that_the_token_may_not_read(tmp_path: Path):
    with running_hub() as hub:
        hub.hub.faults = [Fault("GET /api", 403, {"X-Error-Code": "GatedRepo"})]
        done = command(hub.environment(tmp_path, JAX_PLATFORMS="cpu"))
    assert done.returncode == 2
    assert "Cannot access gated repo" in done.stderr
    assert "HF_TOKEN" in done.stderr
