"""Saved models give transformers the labels that chopjax tested them by, and say what to ask."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from classify import material
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.checkpoint.peft_folder import BASE
from chopjax.classify import grid, saving
from chopjax.classify.depth import Depth
from chopjax.classify.results import KEY
from chopjax.classify.settings import Cell, choice_of
from chopjax.classify.task import prepare
from chopjax.commands.inspect_tables import history_facts
from chopjax.errors import UserError
from chopjax.models import families

KEEP = (0, 1)
# Families whose class for classification transformers wrote by itself.
OF_THEIR_OWN = ("bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt")
ROW: dict[str, Any] = {
    "seed": 0, "settings": {"learning_rate": 1e-3}, "train_examples": 12, "epochs": 3,
    "best_epoch": 2, "held_out_accuracy": 0.5, "test_examples": 7, "accuracy": 0.25,
    "macro_f1": 0.125,
}  # fmt: skip


def in_texts(folder: Path, before: str) -> list[str]:
    rows = map(json.loads, (folder / "test.jsonl").read_text().splitlines())
    return [f"{before}it is {row['text']}\nthe:" for row in rows]


def logits_of(kind: Any, saved: Path, texts: list[str]) -> np.ndarray:
    """Of a batch, padded as the saved tokenizer does; the label words' where there are more."""
    model = kind.from_pretrained(saved, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    if kind is transformers.AutoModelForSequenceClassification:
        assert tokenizer.padding_side == "right"
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        assert not inputs["attention_mask"].all()
        with torch.no_grad():
            logits: np.ndarray = model(**inputs).logits.numpy()
        return logits
    about = json.loads((saved / "chopjax.json").read_text())["history"][-1]
    with torch.no_grad():
        each = [model(**tokenizer(text, return_tensors="pt")).logits[0, -1] for text in texts]
    return torch.stack(each)[:, about["label_tokens"]].numpy()


def trained_best(folder: Path, method: Any, head: Any) -> tuple[Depth, Cell, saving.Best]:
    """What begins at random is as good as what is trained, where files are the subject."""
    rank = {"rank": 2} if method == "lora" else {}
    asked = material.settings(folder, methods=(method,), heads=(head,), **rank)
    task, _, (cell,) = prepare(asked)
    depth = Depth(task, KEEP, load(task.description, keep=KEEP, dtype="float32").params)
    state = depth.learner(cell).begin(depth.params, jax.random.key(1))
    trainable = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.01), state["params"])
    row = ROW | {"method": method, "head": head}
    return (
        depth,
        cell,
        saving.Best(
            depth.question(cell),
            choice_of(asked, task.description, "first", 2),
            row,
            depth.params,
            trainable,
            task.template,
            task.materials[0].before,
        ),
    )


def ours(depth: Depth, cell: Cell, best: saving.Best, texts: list[str]) -> np.ndarray:
    from chopjax.classify.parts import by_length, token_part
    from chopjax.classify.prompts import Prompts
    from chopjax.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(depth.task.description.folder)
    ids = [np.array(each, np.int32) for each in tokenizer.encode_batch(texts)]
    shared = depth.task.materials[cell.seed].shared
    part = token_part(Prompts(ids, np.zeros(len(ids), np.int32)), (512,), skip=shared)
    learner, frozen = depth.learner(cell), depth.frozen(cell)
    logits_XC = np.zeros((len(ids), 3), np.float32)
    for numbers, batch in by_length(part):
        logits = learner.logits(best.trainable, frozen, batch)
        logits_XC[numbers] = np.asarray(logits)[: len(numbers)]
    return logits_XC


def test_a_classifier_loads_in_transformers(tmp_path: Path) -> None:
    folder = material.write(tmp_path)
    depth, cell, best = trained_best(folder, "full", "classifier")
    saving.save(depth.task.description, best, tmp_path / "best", overwrite=False)
    texts = in_texts(folder, best.before)
    kind = transformers.AutoModelForSequenceClassification
    theirs, own = logits_of(kind, tmp_path / "best", texts), ours(depth, cell, best, texts)
    assert np.abs(theirs - own).max() < 1e-4
    assert theirs.argmax(1).tolist() == own.argmax(1).tolist()
    card = (tmp_path / "best" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "this model writes no text" in card


def test_classes_of_transformers() -> None:
    """Each is there, and but for those of OF_THEIR_OWN all classify by the same code."""
    for family, name in saving.CLASSIFIERS.items():
        generic = issubclass(getattr(transformers, name), GenericForSequenceClassification)
        assert generic == (family not in OF_THEIR_OWN), family
    absent = set(families.FAMILIES) - set(saving.CLASSIFIERS)
    assert not absent & set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


@pytest.mark.parametrize("family", [*OF_THEIR_OWN, "gemma2"])
def test_the_head_on_transformers_own_states(family: str, tmp_path: Path) -> None:
    """Transformers' class finds all of its tensors and reads the last token that
    is no padding. Nothing is compiled."""
    folder = material.write(tmp_path, family)
    task, _, (cell,) = prepare(
        material.settings(folder, methods=("none",), heads=("classifier",), layers="all")
    )
    depth = Depth(task, cell.keep, load(task.description, dtype="float32").params)
    kernel_EC = np.random.default_rng(0).normal(size=(depth.config.table_dim, 3)).astype("f4")
    best = saving.Best(
        depth.question(cell),
        choice_of(task.settings, task.description, "first", len(cell.keep)),
        ROW | {"method": "none", "head": "classifier"},
        depth.params,
        {"score": {"kernel": kernel_EC}},
        task.template,
        task.materials[0].before,
    )
    saving.save(task.description, best, tmp_path / "best", overwrite=False)
    kind = transformers.AutoModelForSequenceClassification
    model, found = kind.from_pretrained(tmp_path / "best", output_loading_info=True)
    assert type(model).__name__ == saving.CLASSIFIERS[family]
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == dict(enumerate(material.WORDS))
    texts = in_texts(folder, best.before)
    parent = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    with torch.no_grad():
        states = [
            parent.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            for text in texts
        ]
    expected = torch.stack(states).numpy() @ kernel_EC
    assert np.abs(logits_of(kind, tmp_path / "best", texts) - expected).max() < 1e-4


@pytest.mark.parametrize("method", ["full", "lora", "none"])
def test_a_language_model_with_its_template(method: Any, tmp_path: Path) -> None:
    folder = material.write(tmp_path)
    depth, cell, best = trained_best(folder, method, "lm")
    saving.save(depth.task.description, best, tmp_path / "best", overwrite=False)
    record = json.loads((tmp_path / "best" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 1]
    chop, taught = record["history"]
    assert (chop["strategy"], taught["step"]) == ("first", "classification")
    assert taught["template"]["classes"] == {
        "cat": ["0", "feline", "cat"], "dog": ["1", "canine", "dog"], "log": ["2", "log"],
    }  # fmt: skip
    texts = in_texts(folder, taught["before"])
    theirs = logits_of(transformers.AutoModelForCausalLM, tmp_path / "best", texts)
    if method != "none":  # whose learner reads features
        assert np.abs(theirs - ours(depth, cell, best, texts)).max() < 1e-4
    else:
        parent = load(str(tmp_path / "model"), keep=KEEP, dtype="float32").params
        saved = load(str(tmp_path / "best")).params
        jax.tree.map(np.testing.assert_array_equal, parent, saved)
    again = describe(str(tmp_path / "best"))
    assert again.config.num_layers == 2
    assert history_facts(again.provenance)["classification"] == "toy: cat, dog, log"
    card = (tmp_path / "best" / "README.md").read_text()
    assert "| classification | toy: cat, dog, log |" in card
    assert "25.0% on 7 test examples, macro-F1 12.5%" in card


@pytest.mark.parametrize(("family", "head"), [("llama", "classifier"), ("opt", "lm")])
def test_a_prefix_is_what_peft_loads(
    family: str, head: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the card's own code: virtual tokens, and beside them the model that they stand before."""
    folder = material.write(tmp_path, family)
    depth, cell, best = trained_best(folder, "prefix", head)
    saved = tmp_path / "best"
    saving.save(depth.task.description, best, saved, overwrite=False)
    assert json.loads((saved / "adapter_config.json").read_text())["num_layers"] == 2
    card = (saved / "README.md").read_text()
    assert "library_name: peft" in card
    assert "without them `base` does not give these labels" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(code.replace('folder = "."', f'folder = "{saved}"'), names)
    texts, model = in_texts(folder, best.before), names["model"].eval()
    theirs = []
    for text in texts:
        with torch.no_grad():
            logits = model(**names["tokenizer"](text, return_tensors="pt")).logits
        theirs.append(logits[0] if head == "classifier" else logits[0, -1, best.question.label_ids])
    own = ours(depth, cell, best, texts)
    assert np.abs(torch.stack(theirs).numpy() - own).max() < 1e-4
    with pytest.raises(UserError, match=f"virtual tokens .* give .*best/{BASE} itself"):
        describe(str(saved))


def test_the_cards_own_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = material.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    for head, name in (("lm", "a"), ("classifier", "b")):
        depth, cell, best = trained_best(folder, "full", head)
        saving.save(depth.task.description, best, tmp_path / name, overwrite=False)
        card = (tmp_path / name / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        code = code.replace('folder = "."', f'folder = "{name}"').replace(
            "the text to classify", "abab 101 y"
        )
        capsys.readouterr()
        exec(code, {})
        text = [f"{best.before}it is abab 101 y\nthe:"]
        expected = material.WORDS[int(ours(depth, cell, best, text).argmax())]
        assert capsys.readouterr().out.split() == [expected]


def test_the_best_is_the_best_on_held_out_examples(tmp_path: Path) -> None:
    """In memory, or trained again where an earlier call did it: the same bytes."""
    folder = material.write(tmp_path)
    asked = material.settings(
        folder, layers="1,2", methods=("none",), heads=("classifier",), seeds=2, learning_rate=0.05
    )
    task, conditions, wanted = prepare(asked)
    out = tmp_path / "out"
    out.mkdir()
    known, done = grid.classify(task, conditions, wanted, out)
    assert done is not None
    first = grid.save_best(task, wanted, known, done, tmp_path / "now", False)
    best = max(row["held_out_accuracy"] for row in known["rows"])
    least = min(row["layers"] for row in known["rows"] if row["held_out_accuracy"] == best)
    assert (first.row["held_out_accuracy"], first.row["layers"]) == (best, least)
    # As where another strategy kept the same layers before.
    second = grid.save_best(
        task, wanted, known, done._replace(trained=None), tmp_path / "later", False
    )
    assert [first.row[name] for name in KEY] == [second.row[name] for name in KEY]
    files = [tmp_path / name / "model.safetensors" for name in ("now", "later")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model = describe(str(material.write(tmp_path) / "model"))
    other = dataclasses.replace(model, raw_config=model.raw_config | {"model_type": "cohere"})
    with pytest.raises(UserError, match="no class for a classifier of model_type cohere"):
        saving.check_saving(other, ("lm", "classifier"), ("full",))
    with pytest.raises(UserError, match="--method prefix before model_type cohere are not written"):
        saving.check_saving(other, ("lm",), ("full", "prefix"))
    saving.check_saving(model, ("lm", "classifier"), ("full", "prefix"))
    saving.check_saving(other, ("lm",), ("full", "none"))
