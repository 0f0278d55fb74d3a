"""What a card says of a model that classifies. tests/classify/test_saving.py runs its example."""

from __future__ import annotations

from typing import Any

import pytest

from chopjax.checkpoint import card_classification
from chopjax.checkpoint.card import card

TEMPLATE = {"name": "sst2", "text": "Review: {x}\nSentiment:", "classes": {"Bad": [0], "Good": [1]}}
ENTRY = {
    "step": "classification",
    "template": TEMPLATE,
    "method": "full",
    "head": "lm",
    "seed": 3,
    "settings": {"learning_rate": 5e-05},
    "train_examples": 400,
    "epochs": 20,
    "best_epoch": 5,
    "held_out_accuracy": 0.9,
    "test_examples": 872,
    "accuracy": 0.8765,
    "macro_f1": 0.87,
}


def record(*history: dict[str, Any]) -> dict[str, Any]:
    return {
        "chopjax_version": "1",
        "parent": {"name": "a/b", "revision": "c", "num_layers": 2},
        "strategy": None,
        "settings": {},
        "kept_layers": [0, 1],
        "history": list(history),
    }


def test_what_was_taught_and_what_it_is_worth() -> None:
    facts = dict(card_classification.facts(ENTRY))
    assert facts["classification"] == "sst2: Bad, Good"
    assert facts["classification: trained"] == "method full, head lm, learning_rate 5e-05, seed 3"
    assert facts["classification: length"] == "400 examples, 20 epochs, the best of them 5"
    assert facts["classification: accuracy"].startswith(
        "87.6% on 872 test examples, macro-F1 87.0%"
    )


def test_its_use_is_said_while_nothing_came_after(tmp_path: Any) -> None:
    lm = card(record(ENTRY), {}, tmp_path)
    assert 'about["template"]' in lm
    assert "pipeline_tag: text-generation" in lm
    own = card(record(ENTRY | {"head": "classifier"}), {}, tmp_path)
    assert "pipeline_tag: text-classification" in own
    later = card(record(ENTRY, {"step": "training", "kind": "full"}), {}, tmp_path)
    assert 'about["template"]' not in later
    assert "| classification | sst2: Bad, Good |" in later


@pytest.mark.parametrize(
    "damage", [{"template": 3}, {"template": {"classes": 5}}, {"settings": []}]
)
def test_a_record_of_anybodys(damage: dict[str, Any], tmp_path: Any) -> None:
    assert "| classification |" in card(record(ENTRY | damage), {}, tmp_path)
