"""generation_config.json: its rules against lm-evaluation-harness's hf backend, and its faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from chopjax.errors import UserError
from chopjax.score.decoding import REFUSED, read_generation_config, refused
from chopjax.score.generation import Asked, generate
from chopjax.score.harness import ChopjaxLM

CONTEXTS = ["the cat sat on the mat.", "a bird", "the old tree and the mat " * 3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoints.write_checkpoint(folder, vocab_size=300, max_position_embeddings=96)
    return checkpoints.write_tokenizer(folder, vocab_size=300)


def requests(**given: Any) -> list[Instance]:
    given = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False} | given
    return [
        Instance("generate_until", {}, (context, given), 0, metadata=("task", number, 1))
        for number, context in enumerate(CONTEXTS)
    ]


def write(folder: Path, said: dict[str, Any] | None, **config: Any) -> None:
    """generation_config.json, or none of it, and fields of config.json."""
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if said is not None:
        path.write_text(json.dumps(said))
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(old | config))


def check(folder: Path, **given: Any) -> list[str]:
    """Equal to the hf backend's texts, one prompt a batch; returns them."""
    theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)
    expected = theirs.generate_until(requests(**given), disable_tqdm=True)
    ours = ChopjaxLM(str(folder), dtype="float32")
    assert ours.generate_until(requests(**given)) == expected
    return expected


def written(folder: Path) -> list[int]:
    """The ids of the first text, without any rule."""
    ours = ChopjaxLM(str(folder), dtype="float32")
    prompt = ours.encoder.encode(CONTEXTS[:1])
    ((_, ids),) = generate(ours.engine, prompt, Asked(12))
    return ids


def test_rules_are_those_of_the_hf_backend(tiny: Path) -> None:
    write(tiny, {"eos_token_id": 0})
    plain = check(tiny)
    ids = written(tiny)
    # Sampling alone looks at these, and `lm_eval` asks for none.
    write(tiny, {"eos_token_id": 0, "do_sample": True, "temperature": 0.2, "top_p": 0.5})
    assert check(tiny) == plain
    penalty = {"eos_token_id": 0, "repetition_penalty": 1.7}
    write(tiny, penalty)
    changed = check(tiny)
    assert changed != plain
    assert check(tiny, repetition_penalty=1.0) == plain, "the task's word goes before the model's"
    write(tiny, {"begin_suppress_tokens": ids[:1], "suppress_tokens": [ids[3], 10_000]} | penalty)
    assert check(tiny) not in (plain, changed)
    # Of an ending that comes early: it is put off, and its text stays where it is no special token.
    write(tiny, {"eos_token_id": [ids[2], ids[4]]})
    early = check(tiny)
    assert plain[0].startswith(early[0])
    assert plain != early
    write(tiny, {"eos_token_id": [ids[2], ids[4]], "min_new_tokens": 7})
    check(tiny)
    write(tiny, {"eos_token_id": 0, "max_new_tokens": 3})
    assert check(tiny) != plain


def test_which_file_names_the_ending(tiny: Path) -> None:
    write(tiny, {"eos_token_id": 0})
    plain = check(tiny)
    early = written(tiny)[2]
    write(tiny, {"eos_token_id": 0}, eos_token_id=early)
    assert check(tiny) == plain, "config.json has no say beside generation_config.json"
    write(tiny, {}, eos_token_id=early)
    assert check(tiny) == plain
    write(tiny, None, eos_token_id=early)
    assert check(tiny) != plain
    write(tiny, None, eos_token_id=0)


@pytest.mark.parametrize(
    "option",
    [
        {"num_beams": 3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5]]},
        {"forced_bos_token_id": 5},
        {"forced_eos_token_id": 5},
        {"min_length": 30},
        {"exponential_decay_length_penalty": [3, 1.2]},
        {"sequence_bias": [[[5], 2.0]]},
        {"guidance_scale": 2.0},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"stop_strings": ["the"]},
        {"num_return_sequences": 2, "num_beams": 2},
        {"watermarking_config": {"bias": 2.0}},
    ],
)
def test_what_we_do_not_do_is_refused_by_name(tiny: Path, option: dict[str, Any]) -> None:
    """For tasks that generate; the others do not ask the file."""
    write(tiny, {"eos_token_id": 0} | option)
    ours = ChopjaxLM(str(tiny), dtype="float32")
    name = next(iter(option))
    with pytest.raises(UserError, match=f"{name}=.*generation_config.json"):
        ours.generate_until(requests())
    write(tiny, {"eos_token_id": 0})
    with pytest.raises(UserError, match=f"{name}=.*generation_kwargs"):
        ChopjaxLM(str(tiny), dtype="float32").generate_until(requests(**option))


def test_defaults_are_not_refused() -> None:
    from transformers import GenerationConfig

    assert refused(GenerationConfig()._get_default_generation_params()) == []
    assert set(REFUSED) <= set(GenerationConfig().to_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"eos_token_id": 1,}', "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"null", "a JSON object is needed"),
        (b"[1]", "a JSON object is needed"),
        (b'{"eos_token_id": ' + b"[" * 100_000, "nested more than 64 deep"),
        (b'{"eos_token_id": [[1]]}', "eos_token_id must be token ids"),
        (b'{"eos_token_id": {"a": 1}}', "eos_token_id must be token ids"),
        (b'{"eos_token_id": "</s>"}', "eos_token_id must be token ids"),
        (b'{"eos_token_id": 1.5}', "eos_token_id must be token ids"),
        (b'{"eos_token_id": 1%s}' % (b"0" * 30), "eos_token_id must be token ids"),
        (b'{"suppress_tokens": [true]}', "suppress_tokens must be token ids"),
        (b'{"repetition_penalty": "1"}', "repetition_penalty must be a number"),
        (b'{"repetition_penalty": NaN}', "repetition_penalty must be a number"),
        (b'{"repetition_penalty": 0}', "repetition_penalty must be a number"),
        (b'{"min_new_tokens": -1}', "min_new_tokens must be a number from 0"),
        (b'{"max_new_tokens": 0}', "max_new_tokens must be a number from 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"generation_config.json: .*{message}"):
        read_generation_config(tmp_path)


def test_more_tokens_than_fit(tiny: Path) -> None:
    write(tiny, {"eos_token_id": 0, "max_new_tokens": 96})
    with pytest.raises(UserError, match="max_new_tokens 96"):
        ChopjaxLM(str(tiny), dtype="float32").generate_until(requests())
    write(tiny, {"eos_token_id": 0})
