"""`chopjax chop --repair`: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from chop_models import write_model

from chopjax import cli
from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.head import head_of, logits

THOROUGH = pytest.mark.thorough
VOCABULARY = 300


def make_parent(folder: Path, family: str = "llama", **options: Any) -> Path:
    checkpoints.write_checkpoint(folder, family, vocab_size=VOCABULARY, **options)
    checkpoints.write_tokenizer(folder, VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [
        f"The cat {number} sat on mat number {number * 7}, {'so ' * 9}." for number in range(40)
    ]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parent(tmp_path_factory.mktemp("repair") / "parent")


def chop(parent: Path, out: Path, text: Path, *flags: str) -> int:
    few = ["--data", str(text), "--sequences", "12", "--sequence-length", "32"]
    return cli.main(["chop", str(parent), str(out), *flags, *few])


def bytes_of(folder: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(str(folder))
    return {name: checkpoint.array(name).tobytes() for name in checkpoint.tensors}


@pytest.mark.parametrize(
    ("family", "kind", "options", "folded", "added"),
    [
        ("llama", "linear", {"tie_word_embeddings": True}, ["mlp.down_proj.weight"], 0),
        ("llama", "affine", {}, ["mlp.down_proj.weight"], 9),
        pytest.param("granite", "affine", {}, ["mlp.down_proj.weight"], 9, marks=THOROUGH),
        ("smollm3", "affine", {"num_hidden_layers": 4}, ["mlp.down_proj.weight"], 9),
        pytest.param("seed_oss", "affine", {}, ["mlp.down_proj.weight"], 9, marks=THOROUGH),
        pytest.param("helium", "affine", {}, ["mlp.down_proj.weight"], 9, marks=THOROUGH),
        ("arcee", "affine", {}, ["mlp.down_proj.weight"], 6),
        pytest.param("nemotron", "affine", {}, ["mlp.down_proj.weight"], 6, marks=THOROUGH),
        ("llama", "scalar", {"tie_word_embeddings": True}, None, 0),
        ("gpt2", "affine", {}, ["mlp.c_proj.weight", "mlp.c_proj.bias"], 0),
        pytest.param("opt", "affine", {}, ["fc2.weight", "fc2.bias"], 0, marks=THOROUGH),
        ("opt", "affine", {"do_layer_norm_before": False}, ["final_layer_norm.weight",
                                                            "final_layer_norm.bias"], 0),
        ("gpt_neox", "linear", {}, ["mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias"], 0),
        pytest.param("cohere", "linear", {}, ["mlp.down_proj.weight"], 0, marks=THOROUGH),
        pytest.param("granite", "linear", {}, ["mlp.down_proj.weight"], 0, marks=THOROUGH),
        pytest.param("phi3", "linear", {}, ["mlp.down_proj.weight"], 0, marks=THOROUGH),
        ("olmo2", "linear", {}, ["post_feedforward_layernorm.weight"], 0),
        ("gemma2", "scalar", {"num_hidden_layers": 4}, None, 0),
    ],
)  # fmt: skip
def test_transformers_runs_it_and_all_other_tensors_are_the_parents(
    family: str, kind: str, options: dict[str, Any], folded: list[str] | None, added: int,
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parent, out, bare = (
        make_parent(tmp_path / "p", family, **options),
        tmp_path / "o",
        tmp_path / "b",
    )
    assert cli.main(["chop", str(parent), str(bare), "--keep", "0,1,3"]) == 0
    capsys.readouterr()
    assert chop(parent, out, text, "--keep", "0,1,3", "--repair", kind, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    record = json.loads((out / "chopjax.json").read_text())
    assert (
        record["settings"]["repair"] == said["repair"] == record["history"][0]["settings"]["repair"]
    )
    plain, repaired = bytes_of(bare), bytes_of(out)
    listed, new = said["repair"]["folded"], said["repair"].get("added", [])
    assert set(repaired) == set(plain) | set(new)
    assert {name for name in plain if plain[name] != repaired[name]} == set(listed)
    assert len(new) == added == len(set(repaired)) - len(set(plain))
    assert said["after"]["tensors"] == len(repaired)
    assert said["after"]["bytes"] == sum(map(len, repaired.values()))
    assert ("biases were added" in (out / "README.md").read_text()) == bool(added)
    if folded is not None:
        assert sorted(name.partition(".1.")[2] for name in listed) == sorted(folded)
    else:
        assert any("embed" in name for name in listed)
        assert not any(".2." in name for name in listed), "layer 2 lies behind the gap"
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (2, 24))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(tokens)).logits.numpy()
    loaded = load(str(out))
    states = decoder.hidden_states(loaded.params, loaded.config, Compute(), jnp.asarray(tokens))
    found = logits(head_of(loaded.params, loaded.config), states)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)


def test_the_table_says_what_it_cost_and_gained(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--strategy", "max-gap", "--remove", "2", "--repair", "linear", "--ridge", "0")
    assert chop(parent, tmp_path / "out", text, *flags) == 0
    out = capsys.readouterr().out
    assert "repaired (linear, ridge 0) on " in out
    assert "layers 1 " in out or "layers 1-2" in out
    assert "loss on other sequences" in out
    for word in ("parent", "chopped", "repaired", "error before"):
        assert word in out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| repair | linear" in card
    assert "{'" not in card


def test_a_text_that_is_used_up_is_what_the_loss_is_of(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("The dog sat on the log.")
    assert (
        chop(parent, tmp_path / "out", short, "--keep", "0,3", "--repair", "linear", "--json") == 0
    )
    repair = json.loads(capsys.readouterr().out)["repair"]
    assert not repair["loss_held_back"]
    assert repair["loss_tokens"] > 0


def test_chopping_what_was_repaired_and_chopped(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert chop(parent, once, text, "--keep", "0,2-3", "--repair", "affine") == 0
    assert chop(once, twice, text, "--keep", "0,2", "--repair", "affine") == 0
    record = json.loads((twice / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 3]
    steps = [step["settings"]["repair"] for step in record["history"]]
    assert [len(step.get("added", [])) for step in steps] == [9, 0]
    assert set(steps[1]["folded"]) == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.bias",
    }
    config = json.loads((twice / "config.json").read_text())
    assert config["mlp_bias"] is True


@pytest.mark.parametrize("strategy", ["similarity", "average", "laco"])
def test_with_strategies_that_look(
    strategy: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = make_parent(tmp_path / "parent", num_hidden_layers=6)
    flags = ("--strategy", strategy, "--remove", "2", "--repair", "linear", "--json")
    assert chop(parent, tmp_path / "out", text, *flags) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["after"]["layers"] == 4
    assert all(gap["error_after"] < gap["error_before"] for gap in said["repair"]["gaps"])
    # The loss that was measured is that of the files.
    assert cli.main(["chop", str(parent), str(tmp_path / "none"), "--keep",
                     ",".join(map(str, said["kept_layers"]))]) == 0  # fmt: skip
    assert set(bytes_of(tmp_path / "out")) == set(bytes_of(tmp_path / "none"))


def test_an_analysis_chooses_and_the_text_repairs(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--sequences", "4", "--sequence-length", "16", "--measures", "similarity"]
    analysis = str(tmp_path / "analysis")
    assert cli.main(["analyze", str(parent), "--data", str(text), "--output", analysis, *few]) == 0
    flags = ("--strategy", "similarity", "--remove", "1", "--analysis", analysis)
    assert chop(parent, tmp_path / "out", text, *flags, "--repair", "linear") == 0


def test_bfloat16_stays_bfloat16(text: Path, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", dtype=torch.bfloat16)
    out = tmp_path / "out"
    assert chop(parent, out, text, "--keep", "0,3", "--repair", "affine") == 0
    assert {tensor.dtype for tensor in open_checkpoint(str(out)).tensors.values()} == {"BF16"}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--keep 0,3 --ridge 1", "--ridge is for --repair"),
        ("--keep 0,3 --sequences 3", "--sequences is for --repair"),
        ("--keep 0,3 --repair linear", "give --data FILE"),
        ("--keep 0,3 --repair liner --data TEXT", "'liner' is not one of linear, affine, scalar"),
        ("--keep 0,3 --repair linear --data TEXT --ridge -1", "--ridge -1.0: a number from 0 on"),
        ("--keep 0,3 --repair linear --data TEXT --ridge nan", "--ridge nan: a number from 0 on"),
        ("--keep 2-3 --repair linear --data TEXT", "layers 0-1 have no kept layer before them"),
        ("--keep 0,3 --repair linear --data TEXT --sequences 0", "--sequences 0: at least 1"),
        ("--keep 0,3 --repair linear --data TEXT --sequence-length 1", "between 2 and"),
        ("--keep 0,3 --data TEXT", "are for strategies that measure"),
    ],
)
def test_mistakes_leave_nothing(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str,
    complaint: str,
) -> None:  # fmt: skip
    arguments = flags.replace("TEXT", str(text)).split()
    assert cli.main(["chop", str(parent), str(tmp_path / "out"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_cannot_be_folded_is_refused_before_the_work(
    dry: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = make_parent(tmp_path / "parent", "qwen3")
    assert chop(parent, tmp_path / "out", text, "--keep", "0,3", "--repair", "affine", *dry) == 2
    assert "qwen3 has no bias to put the constant part into" in capsys.readouterr().err
    single = make_parent(tmp_path / "single", num_hidden_layers=1)
    assert chop(single, tmp_path / "out", text, "--strategy", "input", "--remove", "1",
                "--repair", "linear", *dry) == 2  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_dry_run_measures_nothing(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert chop(parent, out, text, "--keep", "0,3", "--repair", "linear", "--dry-run") == 0
    captured = capsys.readouterr()
    assert "would be written" in captured.out
    assert "loading" not in captured.err
    assert not out.exists()


def test_a_model_that_is_only_chopped_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "moe", "phimoe")
    assert (
        chop(tmp_path / "moe", tmp_path / "out", text, "--keep", "0,2", "--repair", "linear") == 2
    )
    assert "--repair linear looks at what layers do" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(parent: Path, tmp_path: Path) -> None:
    endless = tmp_path / "text.jsonl"
    endless.write_text(
        "".join(json.dumps({"text": f"{n} cats sat. " * 40}) + "\n" for n in range(9000))
    )
    process = subprocess.Popen(
        [
            sys.executable, str(Path(__file__).parents[1] / "without_torch.py"),
            "chop", str(parent), str(tmp_path / "out"), "--keep", "0,3",
            "--repair", "linear", "--data", str(endless), "--sequences", "9000",
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("repair: loading"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_the_shared_model_gets_most_of_its_loss_back(
    mix_llama: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """METHODS2, section G: layers 1-6 of 12 out, 4.265 → about 3.69 nats."""
    data = str(shared / "corpora" / "tinystories.train.jsonl")
    flags = ["--keep", "0,7-11", "--repair", "linear", "--data", data, "--sequence-length", "256"]
    assert cli.main(["chop", str(mix_llama), str(tmp_path / "out"), *flags, "--json"]) == 0
    loss = json.loads(capsys.readouterr().out)["repair"]["loss"]
    assert loss["chopped"] == pytest.approx(4.27, abs=0.1)
    assert loss["repaired"] < 3.72
