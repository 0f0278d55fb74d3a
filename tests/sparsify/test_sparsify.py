"""Whole checkpoints pruned: beside plain torch, byte for byte, interrupted, chopped before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import families
import numpy as np
import pytest
import sparse_peers
import torch
import transformers
from sparse_peers import rows, torch_loss

from chopjax import cli, interrupts
from chopjax.checkpoint.open import open_checkpoint
from chopjax.errors import UserError
from chopjax.sparsify.pattern import parse_pattern
from chopjax.sparsify.sparsify import SparsifySettings, sparsify
from chopjax.sparsify.text import Text, read_text

VOCABULARY, SEQUENCES, LENGTH = 300, 12, 24


def make_parent(folder: Path, family: str = "llama", **options: Any) -> Path:
    checkpoints.write_checkpoint(folder, family, vocab_size=VOCABULARY, **options)
    checkpoints.write_tokenizer(folder, VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parent(tmp_path_factory.mktemp("sparsify") / "parent", tie_word_embeddings=True)


def run(parent: Path, out: Path, method: str, pattern: str, *data: Path) -> dict[str, Any]:
    settings = SparsifySettings(method, parse_pattern(pattern), SEQUENCES, LENGTH)
    return sparsify(str(parent), out, settings, list(map(str, data)))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(str(folder))
    return {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file but the mark, which says when files were last written."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def seen(parent: Path, text: Path) -> Text:
    return read_text(open_checkpoint(str(parent)), [str(text)], SEQUENCES, LENGTH, 0, "text")


def in_float64(folder: Path) -> Any:
    """Experts one after the other: torch has no grouped product in float64."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.config._experts_implementation = "eager"
    return model


def tail(name: str, stack: str) -> str:
    """A tensor's name from the list of blocks on."""
    return name[name.index(f"{stack}.") :]


@pytest.mark.parametrize(
    ("family", "method", "pattern"),
    [
        ("llama", "sparsegpt", "2:4"),
        ("gpt2", "sparsegpt", "0.5"),  # Conv1D, and a fused matrix whose blocks share a threshold
        ("gpt_neox", "wanda", "4:8"),  # side by side
        pytest.param("falcon", "wanda", "0.5", marks=pytest.mark.thorough),
        ("gemma2", "sparsegpt", "4:8"),  # layers of two kinds
        ("opt", "magnitude", "0.5"),
        pytest.param("mixtral", "sparsegpt", "2:4", marks=pytest.mark.thorough),
        ("qwen3_moe", "wanda", "0.5"),
    ],
)
def test_masks_and_losses_are_those_of_plain_torch(
    family: str, method: str, pattern: str, text: Path, tmp_path: Path
) -> None:
    layers = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    parent, out = make_parent(tmp_path / "p", family, **{layers: 3}), tmp_path / "o"
    done = run(parent, out, method, pattern, text)
    looked_at = seen(parent, text)
    assert looked_at.held_back
    peer = in_float64(parent)
    assert done["loss"]["parent"] == pytest.approx(
        torch_loss(peer.eval(), rows(looked_at.held_out)), abs=1e-4
    )
    sparse_peers.prune(peer, method, pattern, rows(looked_at.calibration))
    made = in_float64(out)
    theirs = dict(peer.named_parameters())
    agree = weights = 0
    for name, ours in made.named_parameters():
        agree += int(((ours == 0) == (theirs[name] == 0)).sum())
        weights += ours.numel()
        off = ((ours - theirs[name]).abs() > 1e-3).double().mean()
        assert off < (0.02 if method == "sparsegpt" else 0.001), name
    assert agree > 0.999 * weights
    expected = torch_loss(peer, rows(looked_at.held_out))
    assert done["loss"]["pruned"] == pytest.approx(expected, abs=2e-3)
    assert done["loss"]["pruned"] == pytest.approx(
        torch_loss(made.eval(), rows(looked_at.held_out)), abs=1e-4
    )


@pytest.mark.parametrize("family", families.KINDS)
def test_every_linear_map_of_every_block_has_its_zeros_and_all_else_its_bytes(
    family: str, tmp_path: Path
) -> None:
    parent, out = make_parent(tmp_path / "p", family, dtype=torch.bfloat16), tmp_path / "o"
    done = run(parent, out, "magnitude", "2:4")
    before, after = arrays(parent), arrays(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    blocks, stack = checkpoints.blocks_of(model)
    found = sparse_peers.matrices(getattr(blocks, stack))
    expected = {f"{stack}.{name}.weight" for name in found}
    if family == "mixtral":  # its experts lie fused in memory, and the router is not pruned
        expected |= {name for name in before if ".experts." in name}
        expected = {name for name in expected if ".gate." not in name}
    assert {tail(name, stack) for name in changed} == {tail(name, stack) for name in expected}
    for name in changed:
        new, old = after[name].astype(np.float32), before[name].astype(np.float32)
        kept = new != 0
        assert (new[kept] == old[kept]).all(), name
        by_output = new.T if family == "gpt2" else new
        assert ((by_output.reshape(len(by_output), -1, 4) != 0).sum(axis=2) <= 2).all(), name
    zeros = sum(int((after[name] == 0).sum()) for name in changed)
    assert (done["zeros"], done["weights"]) == (zeros, sum(after[n].size for n in changed))
    assert sum(kind["zeros"] for kind in done["kinds"].values()) == zeros


def test_a_run_killed_at_any_instant_goes_on_to_the_same_bytes(
    parent: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, calls = tmp_path / "whole.partial", list[None]()

    def snapshot() -> None:
        calls.append(None)
        if work.is_dir():
            shutil.copytree(work, tmp_path / f"at-{len(calls)}.partial")

    with monkeypatch.context() as patched:
        patched.setattr(interrupts, "check", snapshot)
        whole = run(parent, tmp_path / "whole", "sparsegpt", "2:4", text)
    assert not work.exists()
    assert whole["layers_from_before"] == 0
    instants = sorted(tmp_path.glob("at-*.partial"), key=lambda path: path.stat().st_mtime_ns)
    by_files = {frozenset(path.name for path in at.iterdir()): at for at in instants}
    assert len(by_files) >= 9, "settings, then for every layer: it, the states behind it"
    resumed = set()
    for at in by_files.values():
        out = at.with_suffix("")
        done = run(parent, out, "sparsegpt", "2:4", text)
        resumed.add(done["layers_from_before"])
        assert contents(out) == contents(tmp_path / "whole")
        assert not at.exists()
        assert {k: done[k] for k in ("zeros", "loss")} == {k: whole[k] for k in ("zeros", "loss")}
    assert resumed == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("verb", ["sparsify", "quantize"])
def test_work_that_a_kill_left_when_all_was_written_goes(
    verb: str, parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(text), "--sequences", "4", "--sequence-length", "16"]
    flags += {
        "sparsify": ["--method", "wanda", "--pattern", "2:4"],
        "quantize": ["--method", "gptq", "--weights", "int8"],
    }[verb]
    out, work, advice = tmp_path / "out", tmp_path / "out.partial", list[str]()
    words = [verb, str(parent), str(out), *flags]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("chopjax.sparsify.work._remove", lambda work: None)
        patched.setattr(interrupts, "advise", advice.append)
        assert cli.main(words) == 0
    assert ["the same command goes on from there" in words for words in advice] == [True]
    assert (work / "layer-0.safetensors").is_file()
    shutil.copytree(work, tmp_path / "copy")
    capsys.readouterr()
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"removing {work}, left by a run that was killed when {out} was complete" in said
    assert f"{out} exists" in said
    assert not work.exists()
    # Work on what is to replace another OUT stays, and is gone on with.
    shutil.copytree(tmp_path / "copy", work)
    out.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", out)
    assert cli.main(words) == 2
    assert work.is_dir()
    assert cli.main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers_from_before"] == 4
    assert not work.exists()


def test_unfinished_work_of_other_settings_is_not_mixed_in(
    parent: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fail(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("chopjax.sparsify.sparsify._write", fail)
        with pytest.raises(KeyboardInterrupt):
            run(parent, out, "magnitude", "2:4")
    assert (tmp_path / "out.partial" / "layer-3.safetensors").is_file()
    with pytest.raises(UserError, match=r"unfinished work that differs in pattern"):
        run(parent, out, "magnitude", "4:8")
    with pytest.raises(UserError, match=r"differs in text"):
        run(parent, out, "magnitude", "2:4", text)
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"did not write: notes.txt"):
        run(parent, out, "magnitude", "2:4")
    (tmp_path / "out.partial" / "notes.txt").unlink()
    assert run(parent, out, "magnitude", "2:4")["layers_from_before"] == 4
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(UserError, match=r"other.partial is in the way"):
        run(parent, tmp_path / "other", "magnitude", "2:4")
    assert not (tmp_path / "other").exists()


def test_a_chopped_folder_and_a_chop_of_a_sparse_one(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chopped, sparse, both, other = (tmp_path / name for name in ("c", "s", "cs", "sc"))
    for words in (
        ["chop", parent, chopped, "--keep", "0,2,3"],
        ["sparsify", chopped, both, "--method", "magnitude", "--pattern", "4:8"],
        ["sparsify", parent, sparse, "--method", "magnitude", "--pattern", "4:8"],
        ["chop", sparse, other, "--keep", "0,2,3"],
    ):
        assert cli.main(list(map(str, words))) == 0
    capsys.readouterr()
    one, two = arrays(both), arrays(other)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    steps = [entry["step"] for entry in json.loads((both / "chopjax.json").read_text())["history"]]
    assert steps == ["chop", "sparsity"]
    record = json.loads((other / "chopjax.json").read_text())
    assert [entry["step"] for entry in record["history"]] == ["sparsity", "chop"]
    assert record["kept_layers"] == [0, 2, 3]
    card = (other / "README.md").read_text()
    assert "| sparsity | magnitude, 4:8: " in card
    assert "weight-pruning" in card
    assert "stored dense" in card
    assert cli.main(["inspect", str(other)]) == 0
    assert "magnitude, 4:8: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "wanda", "--pattern", "2:4"], "--method wanda looks at what matrices read"),
        (["--method", "sparsegpt", "--pattern", "0.5"], "give --data FILE"),
        (["--method", "obs", "--pattern", "2:4"], "--method: 'obs' is not one of magnitude"),
        (["--method", "wand", "--pattern", "2:4"], "wanda"),
        (["--method", "magnitude", "--pattern", "3:4"], "--pattern 3:4"),
        (["--method", "magnitude", "--pattern", "8:16"], "down_proj.weight has 56 inputs"),
        (["--method", "magnitude", "--pattern", "0.5", "--sequences", "8"], "is for --data"),
        (["--method", "magnitude", "--pattern", "0.5", "--field", "x"], "is for --data"),
        (["--method", "wanda", "--pattern", "0.5", "--data", "TEXT", "--sequences", "0"],
         "--sequences 0"),
        (["--method", "wanda", "--pattern", "0.5", "--data", "TEXT", "--sequence-length", "999"],
         "the model's 512 positions"),
        (["--method", "wanda", "--pattern", "0.5", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)  # fmt: skip
def test_mistakes(
    flags: list[str], said: str, parent: Path, text: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [str(text) if word == "TEXT" else word for word in flags]
    assert cli.main(["sparsify", str(parent), str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "p", num_hidden_layers=2)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(parent)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    model.save_pretrained(parent)
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight holds NaN"):
        run(parent, tmp_path / "o", "magnitude", "0.5")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_inputs_that_are_no_numbers_are_an_error(method: str, text: Path, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "p", num_hidden_layers=2)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(parent)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1e30  # finite, and its outputs squared are not
    model.save_pretrained(parent)
    said = r"layers.1.mlp.down_proj.weight: the inputs on this text are not all finite"
    with pytest.raises(UserError, match=said):
        run(parent, tmp_path / "o", method, "2:4", text)
    assert not (tmp_path / "o").exists()


def test_what_the_verb_says(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(parent), str(tmp_path / "o"), "--method", "wanda", "--pattern", "2:4"]
    words += ["--data", str(text), "--sequences", str(SEQUENCES), "--sequence-length", str(LENGTH)]
    assert cli.main(["sparsify", *words]) == 0
    shown = capsys.readouterr().out
    assert "mlp/down" in shown
    assert "0.5000" in shown
    assert "perplexity" in shown
    assert cli.main(["sparsify", *words, "--overwrite", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    entry = json.loads((tmp_path / "o" / "chopjax.json").read_text())["history"][-1]
    assert {name: said[name] for name in entry if name != "step"} == {
        name: entry[name] for name in entry if name != "step"
    }
    assert said["sequences"] == SEQUENCES
    assert said["loss"]["pruned"] != said["loss"]["parent"]
