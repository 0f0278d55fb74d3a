"""Recipes and overrides that a user may get wrong in any way."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.train.config_file import load_config, override
from chopjax.train.settings import default_config, read

HEAD = """
from chopjax.train.settings import default_config
def get_config():
    config = default_config()
    config.model = "m"
    config.data.train = "t"
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.py"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "line 1: "),
        ("x = \0", r"recipe\.py: .*null byte"),
        (b"x = '\xff'\n", r"recipe\.py: .*utf-?8"),
        ("", r"no function get_config"),
        ("get_config = 3", "TypeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError"),
        ("def get_config(): raise SystemExit", "SystemExit"),
        ("def get_config(): return get_config()", "RecursionError"),
        ("def get_config(): return {'model': 'x'}", "must return a ConfigDict, not dict"),
        ("def get_config(): pass", "not NoneType"),
        (HEAD + "    config.data.batchsize = 3\n    return config", "no field 'batchsize'"),
    ],
)
def test_a_recipe_that_goes_wrong(tmp_path: Path, text: str | bytes, message: str) -> None:
    if message == "RecursionError":
        gc.collect()  # what other tests left must not be finalized at the bottom of it
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.seed = -1", "seed is -1: not below 0"),
        ("config.seed = 10**30", "seed: 10+ is no number that can be meant"),
        ("config.total_steps = 10**8", "total_steps is 100000000: at most 10,000,000"),
        ("config.data.batch_size = 10**12", "512,000,000,000,000 tokens"),
        ("config.evaluation.batch_size = 10**12", "512,000,000,000,000 tokens"),
        ("config.optimizer.b1 = float('nan')", "optimizer.b1: nan is no number"),
        ("config.optimizer.peak_learning_rate = float('inf')", "rate: inf is no number"),
        ("config.optimizer.weight_decay = 10**400", "int too large to convert to float"),
        ("config.scratch = {1: 2}", "scratch: is not what a config.json can hold"),
        ("config.scratch = {'a': {2: 3}}", "keys must be text"),
        ("config.scratch = {'a': {1, 2}}", "set is not JSON"),
        ("config.scratch = {'a': float('nan')}", "not JSON compliant"),
        ("config.data.train = None", "NoneType|data.train"),
        (
            "config.compute.compiler_options = 'xla_a'",
            "compiler_options: 'xla_a' is not NAME=VALUE",
        ),
        ("config.compute.compiler_options = 'a=1,=2'", "compiler_options: '=2' is not NAME=VALUE"),
        (
            "config.compute.after_chop.microbatch = 2",
            r"after_chop.microbatch: no such field; did you mean microbatches\?",
        ),
        (
            "config.compute.after_chop.remat = 'dot'",
            r"after_chop.remat: 'dot' is not one of .*; did you mean dots or dots_except_mlp\?",
        ),
        (
            "config.compute.after_chop.microbatches = 3; config.chop.keep = '0'",
            "batch_size 8: not a multiple of compute.after_chop.microbatches",
        ),
        ("config.compute.after_chop.loss_chunk = -1", "after_chop.loss_chunk is -1: not below 0"),
        ("config.compute.after_chop.remat = 'full'", "after_chop: there is no chop in the run"),
        ("config.compute.after_chop.compiler_options = 'a'", "'a' is not NAME=VALUE"),
    ],
)
def test_fields_that_cannot_be(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(load_config(write(tmp_path, f"{HEAD}    with config.unlocked():\n        {line}\n"
                                         "    return config")))  # fmt: skip


def test_nothing_is_left_beside_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write(tmp_path, HEAD + "    return config\n")
    assert load_config(str(path)).model == "m"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_recipe_prints_is_not_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_config(write(tmp_path, f"print('loading'){HEAD}    print('made')\n    return config"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.split() == ["loading", "made"]


FIELDS = ["seed", "data.train", "optimizer.b1", "log.tensorboard", "scratch", "data", "x", "", "."]


@given(st.sampled_from(FIELDS), st.text() | st.from_regex(r"[\[\]{}()'\":,0-9e.+*-]{0,12}"))
def test_any_text_is_taken_or_refused(name: str, text: str) -> None:
    config = default_config()
    try:
        override(config, f"{name}={text}")
        read(config)
    except UserError:
        return
    raise AssertionError("a config without data.train or without a model is never whole")


def test_deep_and_long_values() -> None:
    for text in ("[" * 10_000, "-" * 10_000 + "1", "9" * 10_000, "{'a':" * 500 + "1" + "}" * 500):
        for name in ("scratch", "seed", "optimizer.b1"):
            with pytest.raises(UserError):
                override(default_config(), f"{name}={text}")
    with pytest.raises(UserError, match="does not accept dots"):
        override(default_config(), "scratch={'a.b': 1}")
