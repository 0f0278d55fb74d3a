"""Prompts, losses and predictions beside a plain implementation of the protocol in transformers,
torch and peft: batches of one, AdamW with decay of everything, no dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from classify import material

from chopjax.checkpoint.load import load
from chopjax.classify import training
from chopjax.classify.depth import Counted, Depth, run_cell
from chopjax.classify.examples import read_examples
from chopjax.classify.parts import by_length
from chopjax.classify.settings import Cell, TrainSettings
from chopjax.classify.split import Split, draw
from chopjax.classify.task import PARTS, prepare
from chopjax.progress import Bar

FAMILIES = ["llama", "gpt2", "opt"]
KEEP = (0, 1)
STEPS = 10
RATE = 3e-4


class Peer(NamedTuple):
    """The same prompts and the same model, made without chopjax. model: of the first layers."""

    folder: Path
    split: Split
    tokenizer: Any
    prompts: dict[str, list[list[int]]]
    labels: dict[str, list[int]]
    label_ids: list[int]

    def model(self, kind: Any = transformers.AutoModelForCausalLM, **fields: Any) -> Any:
        """With its first layers alone; in evaluation, so that GPT-2 and OPT drop nothing out."""
        config = transformers.AutoConfig.from_pretrained(self.folder / "model")
        config.num_hidden_layers = len(KEEP)
        for name, value in fields.items():
            setattr(config, name, value)
        return kind.from_pretrained(
            self.folder / "model", config=config, attn_implementation="eager"
        ).eval()

    def order(self) -> list[int]:
        """Of the first epoch."""
        count = len(self.labels["train"])
        return np.random.default_rng([0, 1]).permutation(count).tolist()

    def losses(
        self, model: Any, logits_of: Callable[[torch.Tensor], torch.Tensor], batch: int = 1
    ) -> list[float]:
        """Of the first steps, of an epoch at most. logits_of: ids [1, T] → [C]."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
        losses, order = [], self.order()
        for start in range(0, len(order), batch)[:STEPS]:
            some = order[start : start + batch]
            prompts = [torch.tensor([self.prompts["train"][number]]) for number in some]
            loss = torch.nn.functional.cross_entropy(
                torch.stack([logits_of(ids) for ids in prompts]),
                torch.tensor([self.labels["train"][number] for number in some]),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def words(self, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """The label words' logits."""
        return lambda ids: model(input_ids=ids).logits[0, -1, self.label_ids]


@pytest.fixture(
    scope="module",
    params=["llama", *(pytest.param(name, marks=pytest.mark.thorough) for name in FAMILIES[1:])],
)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    folder = material.write(tmp_path_factory.mktemp(request.param), request.param)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    rows = {
        "train": [material.example(number) for number in range(36)],
        "test": [material.example(number) for number in range(100, 112)],
    }
    task, _, _ = prepare(material.settings(folder))
    # The draw is random, so that its numbers are taken from there; what is made of them is not.
    examples = {
        name: read_examples([str(folder / f"{name}.jsonl")], task.template, None, "label")
        for name in rows
    }
    split = draw(examples["train"], examples["test"], task.template, material.SPLIT, 0)

    def query(row: dict[str, Any]) -> str:
        return f"it is {row['text']}\nthe:"

    shown = [rows["train"][number] for number in split.demonstrations]
    head = "".join(
        f"{query(row)} {word}\n" for row, word in zip(shown, material.WORDS, strict=True)
    )
    numbers = {"train": split.train, "held_out": split.held_out, "test": split.test}
    parts = {
        name: [rows["test" if name == "test" else "train"][n] for n in own]
        for name, own in numbers.items()
    }
    before = tokenizer(head + query(shown[0]))["input_ids"]
    return Peer(
        folder,
        split,
        tokenizer,
        {
            name: [tokenizer(head + query(r))["input_ids"] for r in own]
            for name, own in parts.items()
        },
        {name: [row["label"] for row in own] for name, own in parts.items()},
        [
            tokenizer(f"{head}{query(shown[0])} {word}")["input_ids"][len(before)]
            for word in material.WORDS
        ],
    )


def depth_of(peer: Peer, **options: Any) -> Depth:
    more = {"methods": ("lora",), "learning_rate": RATE, "targets": "mlp", "rank": 2}
    task, _, _ = prepare(material.settings(peer.folder, **more | options))
    return Depth(task, KEEP, load(task.description, keep=KEEP, dtype="float32").params)


def ours(depth: Depth, method: Any, head: Any = "lm") -> np.ndarray:
    """The losses of the first epoch."""
    cell = Cell("first", KEEP, method, head, 0)
    trained, _ = run_cell(depth, cell, Counted(Bar("", 1, "cells", 0), 1))
    assert trained is not None
    return trained.losses


def test_prompts_and_label_words(peer: Peer) -> None:
    task = depth_of(peer).task
    (own,) = task.materials
    for name in PARTS:
        prompts = getattr(own, name)
        assert [ids.tolist() for ids in prompts.ids] == peer.prompts[name]
        assert prompts.labels.tolist() == peer.labels[name]
    assert list(task.label_ids) == peer.label_ids
    assert len(set(peer.label_ids)) == 3


def test_the_first_losses_of_full_training(peer: Peer) -> None:
    model = peer.model()
    expected = peer.losses(model, peer.words(model))
    losses = ours(depth_of(peer), "full")
    assert np.abs(losses[:STEPS] - expected).max() < 1e-5
    still = peer.losses(frozen := peer.model().requires_grad_(False), trained_nowhere(peer, frozen))
    assert np.abs(losses[:STEPS] - still).max() > 1e-3  # training is what moved them


def trained_nowhere(peer: Peer, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same numbers through a parameter that changes nothing."""
    idle = torch.nn.Parameter(torch.zeros(()))
    model.register_parameter("idle", idle)
    words = peer.words(model)
    return lambda ids: words(ids) + 0 * idle


def test_predictions_without_training(peer: Peer) -> None:
    """Demonstrations computed once against whole prompts."""
    depth, model = depth_of(peer), peer.model()
    cell = Cell("first", KEEP, "none", "lm", 0)
    parts = depth.parts(cell, Counted(Bar("", 1, "cells", 0), 1))
    assert depth.task.materials[0].shared > 20
    learner = depth.learner(cell)
    frozen = depth.frozen(cell)
    for name, part in parts.items():
        with torch.no_grad():
            logits = [peer.words(model)(torch.tensor([ids])) for ids in peer.prompts[name]]
        expected_XC = torch.stack(logits).numpy()
        for numbers, batch in by_length(part):
            own_BC = np.asarray(learner.logits({}, frozen, batch))[: len(numbers)]
            assert np.abs(own_BC - expected_XC[numbers]).max() < 1e-4
        expected = expected_XC.argmax(-1).tolist()
        assert training.predict(learner, {}, frozen, part).tolist() == expected


@pytest.mark.parametrize("method", ["full", "none"])
def test_the_classifier_head(peer: Peer, method: Any) -> None:
    """…ForSequenceClassification from the same random head; `none` trains nothing else."""
    depth = depth_of(peer)
    cell = Cell("first", KEEP, method, "classifier", 0)
    learner = depth.learner(cell)
    state = learner.begin(depth.params, jax.random.key(0))
    kernel_EC = np.asarray(state["params"]["score"]["kernel"])
    model = peer.model(
        transformers.AutoModelForSequenceClassification, num_labels=3, pad_token_id=0
    )
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor(kernel_EC.T))
    if method == "none":
        model.requires_grad_(False)
        model.score.requires_grad_(True)
    expected = peer.losses(model, lambda ids: model(input_ids=ids).logits[0])
    assert np.abs(ours(depth, method, "classifier")[:STEPS] - expected).max() < 1e-5


def test_a_prefix_is_pefts(peer: Peer) -> None:
    """From the same virtual tokens; and demonstrations computed once a batch, behind them, learn
    what they do in prompts that are computed whole."""
    depth = depth_of(peer, training=TrainSettings(epochs=1, batch_size=3))
    learner = depth.learner(Cell("first", KEEP, "prefix", "lm", 0))
    state = learner.begin(depth.params, jax.random.key(0))
    prefix = {name: np.asarray(x) for name, x in state["params"]["prefix"].items()}
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    model: Any = peft.get_peft_model(peer.model(), config)
    both_LPSKH = np.stack([prefix["key"], prefix["value"]], axis=1)
    table_S = np.moveaxis(both_LPSKH, 2, 0).reshape(20, -1)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(torch.tensor(table_S))
    expected = peer.losses(model.eval(), peer.words(model), batch=3)
    assert np.abs(ours(depth, "prefix") - expected).max() < 1e-5


def test_lora_is_pefts(peer: Peer) -> None:
    from models.test_adapters import MODULES

    depth = depth_of(peer)
    family = depth.config.family
    learner = depth.learner(Cell("first", KEEP, "lora", "lm", 0))
    state = learner.begin(depth.params, jax.random.key(0))
    names = {
        name: MODULES[family][name] for name in ("gate", "up", "down") if name in MODULES[family]
    }
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        lora_alpha=2,
        target_modules=list(names.values()),
        fan_in_fan_out=family == "gpt2",
    )
    model = peft.get_peft_model(peer.model(), config)
    own = state["params"]["blocks"]["mlp"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for ours_, theirs in names.items():
                if f"{theirs}.lora_A" in name:
                    layer = int(next(part for part in name.split(".") if part.isdigit()))
                    weight.copy_(torch.tensor(np.asarray(own[ours_]["a"][layer]).T))
    expected = peer.losses(model.eval(), peer.words(model))
    assert np.abs(ours(depth, "lora")[:STEPS] - expected).max() < 1e-5


@pytest.mark.parametrize("peer", ["llama"], indirect=True)
def test_training_keeps_the_best_epoch(peer: Peer) -> None:
    """The state that is tested is the one that was best on held-out examples, and a run ends when
    its patience does."""
    depth = depth_of(peer)
    cell = Cell("first", KEEP, "none", "classifier", 0)
    learner = depth.learner(cell)
    parts = depth.parts(cell, Counted(Bar("", 1, "cells", 0), 1))
    frozen = depth.frozen(cell)
    found: list[float] = []
    settings = TrainSettings(epochs=30, patience=3, batch_size=4)

    def advance(part: float, values: dict[str, Any]) -> None:
        found.extend([values["held-out"]] if values else [])

    best = training.train(
        learner, depth.params, frozen, parts["train"], parts["held_out"], settings, 0, advance
    )
    assert best.held_out_accuracy == max(found)
    assert best.best_epoch == 1 + found.index(max(found))
    assert best.epochs == len(found) == min(30, best.best_epoch + 3)
    assert len(best.losses) == 3 * best.epochs  # twelve examples
    again = training.predict(learner, best.trainable, frozen, parts["held_out"])
    assert np.mean(again == parts["held_out"].labels_X) == max(found)
