"""Whole runs: they heal, resume to the same bits, and refuse what would change them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from train.runs import STEPS, at_step, bits, lines, prepare, recipe, signal_after

from chopjax import cli, progress
from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint
from chopjax.chop.stream import chop_checkpoint
from chopjax.data.store import open_store
from chopjax.errors import UserError
from chopjax.launch.distributed import EXIT_PREEMPTED
from chopjax.train import checkpoints, evaluation, loop
from chopjax.train.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


CHOP = ("chop.strategy=input", "chop.remove=2", "chop.after_steps=4", "optimizer.name=lion")


@pytest.fixture(scope="module")
def chopped(data, tmp_path_factory) -> Path:
    """An undisturbed run with Lion that chops after step 4."""
    workdir = tmp_path_factory.mktemp("chopped")
    train(recipe(data, *CHOP, "evaluation.every=6"), workdir)
    return workdir


def test_held_out_text_has_a_bar(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, too: its batches are counted, and it is not alone at 100 %."""
    bars: list[progress.Bar] = []

    @contextlib.contextmanager
    def seen(label: str, total: float | None, unit: str) -> Iterator[progress.Bar]:
        bars.append(progress.Bar(label, total, unit, done=0))
        yield bars[-1]

    monkeypatch.setattr(evaluation, "progress", seen)
    train(recipe(data, "total_steps=2", "evaluation.every=2"), tmp_path / "run")
    assert len(bars) == 2  # at steps 0 and 2
    assert all(bar.label == "held-out loss" and bar.done == bar.total for bar in bars)
    assert all("loss" in bar.values for bar in bars)


def test_a_run_heals_and_says_what_it_did(chopped):
    evaluations = lines(chopped, "eval_loss")
    assert list(evaluations) == [0, 4, 6, 12]
    assert evaluations[12] < evaluations[4]
    losses = lines(chopped, "loss")
    assert list(losses) == list(range(1, STEPS + 1))
    assert lines(chopped, "tokens")[STEPS] == STEPS * 4 * 16


def test_the_chop_comes_after_the_steps_and_is_recorded(chopped):
    record = json.loads((chopped / "checkpoints/10/run.json").read_text())
    assert record["num_layers"] == 2
    assert record["kept_layers"] == [0, 3]
    loaded = load(str(chopped))
    assert loaded.config.num_layers == 2
    assert loaded.provenance is not None
    assert loaded.provenance["kept_layers"] == [0, 3]
    assert loaded.raw_config["num_hidden_layers"] == 2


def test_an_export_says_how_it_was_trained(chopped, data, tmp_path):
    export_model(str(chopped), tmp_path / "healed")
    record = json.loads((tmp_path / "healed" / "chopjax.json").read_text())
    chop, training = record["history"]
    assert record["parent"]["name"] == str(data / "model")
    assert chop["kept_layers"] == [0, 3]
    assert (training["step"], training["kind"]) == ("training", "full")
    assert (training["steps"], training["tokens"]) == (STEPS, STEPS * 4 * 16)
    assert training["chop_after_steps"] == 4
    assert training["optimizer"]["name"] == "lion"
    assert (training["optimizer"]["b1"], training["optimizer"]["b2"]) == (0.9, 0.95)
    assert training["learning_rate"]["peak"] == 3e-3
    assert training["learning_rate"]["warmup_steps"] == 2
    assert (training["batch_size"], training["sequence_length"]) == (4, 16)
    (store,) = training["data"]
    assert store["fingerprint"] == open_store(data / "train").fingerprint
    assert store["name"] == "train"
    held_out = training["held_out"]
    assert held_out["window_loss"] == lines(chopped, "eval_loss")[STEPS]
    assert held_out["data"]["fingerprint"] == open_store(data / "held_out").fingerprint
    assert "windows of 16" in held_out["convention"]
    card = (tmp_path / "healed" / "README.md").read_text()
    assert "12 steps, 768 tokens, all weights; the first 4 with all layers" in card
    assert f"{held_out['window_loss']:.4f}" in card
    assert str(data) not in card
    # An earlier checkpoint says where it stood, and a chop of the result adds to the history.
    early = describe(str(chopped), step=10).provenance
    assert early is not None
    assert early["history"][1]["steps"] == 10
    assert early["history"][1]["held_out"] is None
    again = chop_checkpoint(
        open_checkpoint(str(tmp_path / "healed")), (1,), tmp_path / "again", "keep", {"keep": "1"}
    )
    assert again.kept_layers == (1,)
    record = json.loads((tmp_path / "again" / "chopjax.json").read_text())
    assert [entry["step"] for entry in record["history"]] == ["chop", "training", "chop"]
    assert record["kept_layers"] == [3]


def test_a_run_of_an_earlier_version_names_no_stores(chopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(chopped, workdir)
    path = workdir / f"checkpoints/{STEPS}/run.json"
    record = json.loads(path.read_text())
    del record["stores"]
    path.write_text(json.dumps(record))
    provenance = describe(str(workdir)).provenance
    assert provenance is not None
    training = provenance["history"][1]
    assert training["data"][0]["fingerprint"] == record["fingerprints"]["data"][0]
    path.write_text("{}")
    with pytest.raises(UserError, match=r"run\.json: not a record"):
        describe(str(workdir))
    # Nor does it matter what lies at metrics.jsonl.
    path.write_text(json.dumps(record))
    (workdir / "metrics.jsonl").write_bytes(b'\xff "eval_loss"\n{"eval_loss": NaN, "step": 12}\n')
    assert describe(str(workdir)).provenance is not None


def stop_in(patch: pytest.MonkeyPatch, module: object, name: str, call: int) -> None:
    """SIGTERM when a function is called for the so-manieth time, in whatever thread."""
    inner, calls = getattr(module, name), []

    def patched(*arguments):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the main thread goes on meanwhile
        return inner(*arguments)

    patch.setattr(module, name, patched)


@pytest.mark.parametrize(
    "stop",
    [
        lambda patch: signal_after(patch, 2, signal.SIGTERM),
        lambda patch: signal_after(patch, 4, signal.SIGTERM),  # when the chop is due
        lambda patch: stop_in(patch, loop, "on_mesh", 6),  # while a batch is read
        lambda patch: stop_in(patch, checkpoints, "write_manifest", 1),  # in the middle of a save
        pytest.param(
            lambda patch: stop_in(patch, evaluation, "on_mesh", 2), marks=pytest.mark.thorough
        ),
    ],
    ids=["before the chop", "at the chop", "data", "save", "evaluation"],
)
def test_resuming_gives_the_same_bits_wherever_sigterm_came(
    data, chopped, tmp_path, monkeypatch, stop
):
    config = recipe(data, *CHOP, "evaluation.every=6", "evaluation.batch_size=1")
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(SystemExit) as stopped:
            train(config, tmp_path)
    assert stopped.value.code == EXIT_PREEMPTED
    assert len(lines(tmp_path, "loss")) < STEPS
    train(config, tmp_path)
    assert bits(tmp_path) == bits(chopped)
    assert lines(tmp_path, "loss") == lines(chopped, "loss")
    assert lines(tmp_path, "eval_loss") == pytest.approx(lines(chopped, "eval_loss"), rel=1e-6)


def test_after_the_chop_the_run_computes_as_it_is_told(data, chopped, tmp_path, monkeypatch):
    """As one that is stopped at the chop and goes on with other settings, to the same bits; it may
    be stopped later, too."""
    own = ("compute.after_chop.microbatches=2", "compute.after_chop.remat=full")
    switched = tmp_path / "switched"
    config = recipe(data, *CHOP, *own, "data.evaluation=")
    with monkeypatch.context() as patch:
        signal_after(patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config, switched)
    train(config, switched)

    resumed = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        signal_after(patch, 4, signal.SIGTERM)  # the chop is due
        with pytest.raises(SystemExit):
            train(recipe(data, *CHOP, "data.evaluation="), resumed)
    late = ("compute.microbatches=2", "compute.remat=full")
    train(recipe(data, *CHOP, *late, "data.evaluation="), resumed)

    assert bits(switched) == bits(resumed)
    losses, before = lines(switched, "loss"), lines(chopped, "loss")
    assert [losses[step] for step in range(1, 5)] == [before[step] for step in range(1, 5)]
    assert losses == pytest.approx(before, rel=1e-4)
    assert losses != before  # sums have another order


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("optimizer.name=adamw",), marks=pytest.mark.thorough),
        ("optimizer.name=lion", "optimizer.momentum_dtype=bfloat16"),
        pytest.param(
            (
                "optimizer.name=adamw",
                "optimizer.momentum_dtype=bfloat16",
                "compute.param_dtype=bfloat16",
            ),
            marks=pytest.mark.thorough,
        ),
    ],
    ids=" ".join,
)
def test_resuming_gives_the_same_bits_with_every_optimizer(data, tmp_path, monkeypatch, settings):
    config = recipe(data, *settings, "chop.keep=0,2", "data.evaluation=")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_after(patch, 6, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_a_disk_that_will_be_full_is_seen_before(data, small_disk):
    config = recipe(data, "data.evaluation=", "checkpoints.every=2", "checkpoints.keep_last=9")
    with pytest.raises(UserError, match=r"6 more checkpoints of [\d,]+ bytes .* [\d,]+ are free"):
        train(config, small_disk)
    assert checkpoints.steps(small_disk / "checkpoints") == []
    assert not (small_disk / "metrics.jsonl").exists()


def test_a_full_disk_stops_with_what_is_saved(data, small_disk, capsys, monkeypatch):
    # Others may fill it meanwhile.
    monkeypatch.setattr("chopjax.train.loop.check_training", lambda *arguments: None)
    config = recipe(data, "data.evaluation=", "checkpoints.every=2", "checkpoints.keep_last=9")
    with pytest.raises(UserError, match="No space left on device") as full:
        train(config, small_disk)
    assert "newest checkpoint is that of step 2 in" in str(full.value)
    assert "Traceback" not in capsys.readouterr().err
    assert checkpoints.latest_good(small_disk / "checkpoints") == 2
    assert checkpoints.steps(small_disk / "checkpoints") == [2]


def test_metrics_that_cannot_be_written_are_named(data, tmp_path, monkeypatch):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    at_step(monkeypatch, 6, full)
    with pytest.raises(UserError, match=r"No space left .* newest checkpoint is that of step 5"):
        train(recipe(data, "data.evaluation="), tmp_path)


def test_only_the_kept_layers_are_loaded(data, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("chopjax.train.loop.load", lambda *a, **k: seen.update(k) or load(*a, **k))
    config = recipe(data, "chop.keep=0,2", "total_steps=1", "data.evaluation=")
    config.optimizer.warmup_steps = 0
    config.optimizer.peak_learning_rate = 0.0
    train(config, tmp_path)
    assert seen["keep"] == (0, 2)
    parent = load(config.model).params
    healed = load(str(tmp_path)).params
    want = parent["blocks"]["attention"]["query"][np.array([0, 2])]
    np.testing.assert_array_equal(healed["blocks"]["attention"]["query"], want)


def test_a_finished_run_is_not_trained_again(chopped, data):
    before = bits(chopped)
    summary = train(recipe(data, *CHOP, "evaluation.every=6"), chopped)
    assert summary["steps"] == STEPS
    assert summary["eval_loss"] == lines(chopped, "eval_loss")[STEPS]
    assert bits(chopped) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.batch_size=8", "data.batch_size: 4 -> 8"),
        ("total_steps=20", "total_steps: 12 -> 20"),
        ("optimizer.peak_learning_rate=1e-3", "optimizer.peak_learning_rate: 0.003 -> 0.001"),
        ("seed=1", "seed: 0 -> 1"),
    ],
)
def test_a_change_of_meaning_is_refused_with_a_diff(chopped, data, change, named):
    with pytest.raises(UserError, match="--force") as refused:
        train(recipe(data, *CHOP, change), chopped)
    assert named in str(refused.value)


def test_other_data_or_tokenizer_is_refused(chopped, data, tmp_path):
    with pytest.raises(UserError, match="data of this run changed"):
        train(recipe(data, *CHOP, f"data.train={data / 'held_out'}"), chopped)
    record = json.loads((data / "train/store.json").read_text())
    other = tmp_path / "store"
    other.mkdir()
    for file in (data / "train").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    record["tokenizer_fingerprint"] = "0" * 64
    (other / "store.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="another tokenizer"):
        train(recipe(data, *CHOP, f"data.train={other}"), chopped)


def test_a_moved_store_and_new_housekeeping_are_not_a_change(chopped, data, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(data / "train")
    changes = (
        f"data.train={moved}",
        "checkpoints.every=3",
        "log.tensorboard=False",
        "compute.loss_chunk=7",
        "compute.compiler_options=xla_cpu_enable_fast_math=false",
    )
    assert train(recipe(data, *CHOP, *changes, "evaluation.every=6"), chopped)["steps"] == STEPS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["compute.attention=splash"], "compute.attention: splash runs on TPUs, this is a cpu"),
        (["compute.attention=cudnn"], "compute.attention: cudnn runs on NVIDIA GPUs"),
        (
            ["compute.compiler_options=xla_nonsense=true"],
            "compute.compiler_options: No such compile option: 'xla_nonsense'",
        ),
    ],
)
def test_what_cannot_run_here_is_refused_by_name(data, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        train(recipe(data, *changes), tmp_path)


def test_force_goes_on_all_the_same(data, tmp_path, capsys):
    train(recipe(data, "total_steps=5", "data.evaluation="), tmp_path)
    train(recipe(data, "total_steps=7", "data.evaluation="), tmp_path, force=True)
    assert "total_steps: 5 -> 7" in capsys.readouterr().err
    assert list(lines(tmp_path, "loss")) == list(range(1, 8))


@pytest.mark.parametrize(
    ("rate", "every", "said"),
    [
        # Parameters of 1e38: the loss of a later step tells.
        (1e38, 2, r"step 6: loss .* nan; it went wrong in steps [56]-6\. .* that of step [45] in"),
        # Infinite ones after a step with a fine loss, and that is when a save is due.
        (1e39, 5, r"step 5: the state is not finite\. .* that of step 4 in"),
    ],
)
def test_what_is_not_a_number_stops_the_run_and_is_not_saved(
    data, tmp_path, monkeypatch, rate, every, said
):
    monkeypatch.setattr("chopjax.train.settings.MOST", 1e50)  # such rates are refused otherwise
    config = recipe(data, "data.evaluation=", f"checkpoints.every={every}")
    train(recipe(data, "data.evaluation=", "total_steps=4", "checkpoints.every=2"), tmp_path)
    before = bits(tmp_path)
    config.optimizer.peak_learning_rate = rate
    config.optimizer.name = "lion"
    with pytest.raises(UserError, match=said) as e:
        train(config, tmp_path, force=True)
    assert "spike_factor" in str(e.value)
    assert bits(tmp_path, 4) == before
    assert 5 not in checkpoints.steps(tmp_path / "checkpoints")


def test_from_random_weights_and_exported(data, tmp_path):
    raw = json.loads((data / "model/config.json").read_text())
    config = recipe(data, "total_steps=3", f"scratch={raw}", "model=")
    config.tokenizer = str(data / "model")
    config.log.tensorboard = True
    train(config, tmp_path / "run")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert list((tmp_path / "run/tensorboard").glob("events*"))
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 4
    query = model.model.layers[1].self_attn.q_proj.weight.detach()
    ours = load(str(tmp_path / "run")).params["blocks"]["attention"]["query"][1]
    assert torch.equal(query, torch.tensor(np.asarray(ours).reshape(16, -1).T))


def test_random_weights_in_the_shape_of_a_chop(data, tmp_path, capsys):
    """The same as from the chop's config.json, and no weight is said to be the parent's."""
    raw = json.loads((data / "model/config.json").read_text()) | {"num_hidden_layers": 2}
    flags = ["total_steps=2", "data.evaluation="]
    config = recipe(data, *flags, f"scratch={raw}", "model=", f"tokenizer={data / 'model'}")
    train(config, tmp_path / "config")
    shaped = recipe(data, *flags, "from_scratch=True", "chop.keep=0,3")
    shaped.checkpoints.every = 1
    train(shaped, tmp_path / "chop")
    assert bits(tmp_path / "chop") == bits(tmp_path / "config")
    assert "random weights, seed 0" in capsys.readouterr().err
    assert train(shaped, tmp_path / "chop")["steps"] == 2  # is resumed as what it is
    assert cli.main(["export", str(tmp_path / "chop"), str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/chopjax.json").read_text())
    (entry,) = record["history"]
    assert (record["parent"]["name"], entry["step"]) == ("random weights", "training")
    assert entry["shape_of"] == {
        "name": str(data / "model"), "revision": None, "num_layers": 4, "kept_layers": [0, 3],
    }  # fmt: skip
    card = (tmp_path / "out/README.md").read_text()
    assert "that of model with 2 of its 4 layers" in card
    assert "trained from random weights" in card


def test_two_runs_cannot_share_a_folder(data, tmp_path, monkeypatch):
    seen = []

    def second() -> None:
        with pytest.raises(UserError, match="another run works in this folder") as refused:
            train(recipe(data), tmp_path)
        seen.append(str(refused.value))

    at_step(monkeypatch, 2, second)
    train(recipe(data, "total_steps=3", "data.evaluation="), tmp_path)
    assert seen


def test_the_command(data, tmp_path, capsys):
    file = tmp_path / "recipe.py"
    file.write_text(
        "from pathlib import Path\n"
        "from train.runs import recipe\n"
        f"def get_config(): return recipe(Path({str(data)!r}))\n"
    )
    command = ["train", "--config", str(file), "--workdir", str(tmp_path / "run")]
    assert cli.main([*command, "--json", "--config.total_steps=2", "--config.chop.keep=0,1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 2
    assert summary["kept_layers"] == [0, 1]
    assert summary["eval_tokens"] == 4 * 41 - 1
    assert summary["mfu"] > 0
    assert cli.main([*command, "--config.total_stepz=2"]) == 2
    assert "did you mean total_steps" in capsys.readouterr().err
