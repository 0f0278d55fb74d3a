"""Generated text against lm-evaluation-harness's hf backend, float32 on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import families
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from chopjax.errors import UserError
from chopjax.score.generation import GenerationSettings, read_settings
from chopjax.score.harness import ChopjaxLM
from chopjax.score.journal import Journal

TEXT = "the cat sat on the mat. one day a small bird looked at the old tree. "


def requests(arguments: list[dict[str, Any]], contexts: list[str]) -> list[Instance]:
    pairs = [(context, given) for given in arguments for context in contexts]
    return [
        Instance("generate_until", {}, pair, 0, metadata=("task", number, 1))
        for number, pair in enumerate(pairs)
    ]


CONTEXTS = ["the", TEXT, TEXT * 5, "a bird", TEXT[:31], "<|endoftext|>the cat"]
ARGUMENTS: list[dict[str, Any]] = [
    {"until": ["\n", " t"], "max_gen_toks": 9},
    {"until": "e", "max_gen_toks": 20, "do_sample": False, "temperature": 0.0},
    {"max_new_tokens": 12},
]


@pytest.mark.parametrize("family", families.SAMPLE)
def test_tiny_models(family: str, tmp_path: Path) -> None:
    """Stops, many lengths in a batch, and contexts that are cut on the left."""
    name = {"gpt2": "n_positions"}.get(family, "max_position_embeddings")
    sizes: dict[str, Any] = {name: 64, "vocab_size": 300}
    checkpoints.write_checkpoint(tmp_path, family, **sizes)
    checkpoints.write_tokenizer(tmp_path, vocab_size=300)
    asked = requests(ARGUMENTS, CONTEXTS)
    theirs = HFLM(str(tmp_path), device="cpu", dtype="float32", batch_size=4)
    ours = ChopjaxLM(str(tmp_path), dtype="float32")
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_real_model(mix_llama: Path) -> None:
    """The end-of-text token ends a text, and stop strings of several tokens are found."""
    asked = requests(
        [{"until": ["\n\n", ". T"], "max_gen_toks": 40}], [TEXT, TEXT[:20], "Once upon a time"]
    )
    theirs = HFLM(str(mix_llama), device="cpu", dtype="float32", batch_size=2)
    ours = ChopjaxLM(str(mix_llama), dtype="float32")
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_a_journal_remembers_texts(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", "llama", vocab_size=300)
    checkpoints.write_tokenizer(tmp_path / "m", vocab_size=300)
    asked = requests([{"until": ["\n"], "max_gen_toks": 5}], CONTEXTS[:3])
    ours = ChopjaxLM(str(tmp_path / "m"), dtype="float32")
    ours.journal = Journal(tmp_path, {})
    texts = ours.generate_until(asked)
    batches = ours.engine.statistics.programs
    ours.journal = Journal(tmp_path, {})
    ours.engine.params = {}  # nothing is computed again
    assert ours.generate_until(asked) == texts
    assert ours.engine.statistics.programs == batches


def test_settings() -> None:
    assert read_settings({"until": "x"}, "r") == GenerationSettings(256, ("x",))
    assert read_settings({"until": ["", "y"], "max_tokens": 3}, "r") == GenerationSettings(
        3, ("y",)
    )
    for bad in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        with pytest.raises(UserError, match="task 7: chopjax decodes greedily"):
            read_settings(bad, "task 7")


def test_impossible_requests_are_named(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path, "llama", vocab_size=300, max_position_embeddings=64)
    checkpoints.write_tokenizer(tmp_path, vocab_size=300)
    ours = ChopjaxLM(str(tmp_path), dtype="float32")
    with pytest.raises(UserError, match="64 tokens are to be generated"):
        ours.generate_until(requests([{"max_gen_toks": 64}], ["the"]))
    with pytest.raises(UserError, match="document 0, request 0: the context has no tokens"):
        ours.generate_until(requests([{"max_gen_toks": 4}], [""]))
