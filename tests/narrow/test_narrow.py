"""The verb: what it writes, byte for byte, before and after a chop, interrupted, and mistaken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers

from chopjax import cli
from chopjax.checkpoint.open import open_checkpoint

VOCABULARY = 300
LOOK = ["--sequences", "6", "--sequence-length", "16"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_text(tmp_path_factory.mktemp("text"), 30)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow") / "parent"
    checkpoints.write_checkpoint(
        folder, dtype=torch.bfloat16, vocab_size=VOCABULARY, num_hidden_layers=3
    )
    return checkpoints.write_tokenizer(folder, VOCABULARY)


@pytest.fixture(scope="module")
def made(parent: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    assert narrow(parent, out, text, "--mlp", "0.4", "--heads", "0.5") == 0
    return out


def narrow(parent: Path, out: Path, text: Path, *flags: str, method: str = "activation") -> int:
    words = ["narrow", str(parent), str(out), "--method", method, "--data", str(text), *LOOK]
    return cli.main([*words, *flags])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(str(folder))
    return {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}


def entry(folder: Path) -> dict[str, Any]:
    last: dict[str, Any] = json.loads((folder / "chopjax.json").read_text())["history"][-1]
    return last


def stayed(record: dict[str, Any], kind: str, layer: int) -> list[int]:
    """By the bits in chopjax.json."""
    about = record["units"][kind]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(about["stayed"][layer]), np.uint8))
    assert not bits[about["before"] :].any()
    return np.flatnonzero(bits).tolist()


def test_kept_rows_are_the_parents_byte_for_byte(parent: Path, made: Path) -> None:
    before, after, record = arrays(parent), arrays(made), entry(made)
    assert before.keys() == after.keys()
    differ = set()
    for layer in range(3):
        hidden, groups = (stayed(record, kind, layer) for kind in ("mlp", "heads"))
        assert (len(hidden), len(groups)) == (32, 1)
        keys = [group * 8 + i for group in groups for i in range(8)]
        queries = [group * 16 + i for group in groups for i in range(16)]
        expected = {"self_attn.q_proj": before_rows(queries), "self_attn.k_proj": before_rows(keys)}
        expected |= {"self_attn.v_proj": before_rows(keys), "mlp.up_proj": before_rows(hidden)}
        expected |= {"mlp.gate_proj": before_rows(hidden)}
        expected |= {"self_attn.o_proj": before_columns(queries)}
        expected |= {"mlp.down_proj": before_columns(hidden)}
        for name, at in expected.items():
            full = f"model.layers.{layer}.{name}.weight"
            differ.add(full)
            assert after[full].tobytes() == before[full][at].tobytes(), full
    for name in before.keys() - differ:
        assert after[name].tobytes() == before[name].tobytes(), name


def before_rows(indices: list[int]) -> Any:
    return (indices, slice(None))


def before_columns(indices: list[int]) -> Any:
    return (slice(None), indices)


def test_the_config_says_every_width_and_transformers_loads_it(parent: Path, made: Path) -> None:
    raw, old = (json.loads((f / "config.json").read_text()) for f in (made, parent))
    widths = {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert raw == old | widths | {"head_dim": 8}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(made)
    assert sum(p.numel() for p in model.parameters()) == entry(made)["parameters"]["after"]


def test_a_chop_before_and_after_is_the_same(
    parent: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chop", str(made), str(tmp_path / "nc"), "--keep", "0,2"]) == 0
    record = json.loads((tmp_path / "nc" / "chopjax.json").read_text())
    assert [step["step"] for step in record["history"]] == ["width", "chop"]
    assert record["kept_layers"] == [0, 2]
    one, two = arrays(made), arrays(tmp_path / "nc")
    assert two["model.layers.1.mlp.up_proj.weight"].tobytes() == (
        one["model.layers.2.mlp.up_proj.weight"].tobytes()
    )
    card = " ".join((tmp_path / "nc" / "README.md").read_text().split())
    assert "32 of 56 hidden units and 1 of 2 groups of 2 query heads of every layer stayed" in card
    assert "width-pruning" in card
    assert "and reads all of these widths, runs this" in card
    assert cli.main(["inspect", str(tmp_path / "nc")]) == 0
    assert "32 of 56 hidden units" in " ".join(capsys.readouterr().out.split())


def test_a_chopped_folder_by_gradient(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chopped, out = tmp_path / "c", tmp_path / "o"
    assert cli.main(["chop", str(parent), str(chopped), "--keep", "0,2"]) == 0
    capsys.readouterr()
    words = ["--mlp", "0.7", "--embed", "0.25", "--max-shard-size", "10KB", "--json"]
    assert narrow(chopped, out, text, *words, method="gradient") == 0
    said = json.loads(capsys.readouterr().out)
    widths = {"mlp": {"before": 56, "after": 16}, "embed": {"before": 32, "after": 24}}
    assert said["units"] == widths
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == said["parameters"]["after"]
    assert said["loss"]["pruned"] != said["loss"]["parent"]
    record = json.loads((out / "chopjax.json").read_text())
    assert [step["step"] for step in record["history"]] == ["chop", "width"]
    last = record["history"][-1]
    assert [len(last["units"][kind]["stayed"]) for kind in widths] == [2, 1]
    assert {k: said[k] for k in last if k not in ("step", "units")} == {
        k: last[k] for k in last if k not in ("step", "units")
    }
    assert len(list(out.glob("*.safetensors"))) > 1


def test_what_the_verb_says(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrow(parent, tmp_path / "o", text, "--heads", "0.5") == 0
    shown = capsys.readouterr().out
    assert "groups of 2 query heads" in shown
    assert "loss on other sequences of it" in shown
    assert "looked at" in shown
    assert narrow(parent, tmp_path / "o", text, "--heads", "0.5") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert narrow(parent, tmp_path / "o", text, "--heads", "0.5", "--overwrite") == 0


@pytest.mark.parametrize("place", ["_write", "loss", "write_record"])
def test_nothing_is_left_of_a_run_that_ends_early(
    place: str, parent: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(f"chopjax.narrow.narrow.{place}", fail)
    assert narrow(parent, tmp_path / "o", text, "--mlp", "0.5") == 130
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_named(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = checkpoints.write_checkpoint(
        tmp_path / "p", vocab_size=VOCABULARY, num_hidden_layers=2
    )
    checkpoints.write_tokenizer(parent, VOCABULARY)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(parent)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    model.save_pretrained(parent)
    assert narrow(parent, tmp_path / "o", text, "--mlp", "0.5") == 2
    assert "layer 1 (mlp) are no finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "activation"], "nothing is asked for"),
        (["--method", "activation", "--mlp", "1.5"], "--mlp 1.5"),
        (["--method", "activation", "--heads", "0.3"], "the nearest shares that work: 0.5"),
        (["--method", "gradients", "--mlp", "0.5"], "did you mean gradient?"),
        (["--method", "gradient", "--mlp", "0.5", "--sequences", "0"], "--sequences 0"),
        (["--method", "gradient", "--mlp", "0.5", "--sequence-length", "999"], "512 positions"),
    ],
)
def test_mistakes(
    flags: list[str], said: str, parent: Path, text: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["narrow", str(parent), str(tmp_path / "out"), "--data", str(text), *flags]
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_text_is_needed(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["narrow", str(parent), str(tmp_path / "out"), "--method", "gradient", "--mlp", "0.5"]
    assert cli.main(words) == 2
    assert "--data FILE is needed" in capsys.readouterr().err
