"""Text with a draft beside text without one, and draws beside the distribution they are from."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.models.head import head_of, logits
from chopjax.score.decoding import Rules
from chopjax.score.drafting import Draft, Drafting, Pace, of_layers, of_model
from chopjax.score.ending import shortest
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, generate
from chopjax.score.model import open_engine
from chopjax.score.next_token import Choice, Sampling

PROMPTS = [np.array(ids) for ids in ([3], [5, 9, 4, 4, 7], list(range(1, 60)), [8, 8])]
DRAFTS = ("first layers", "other layers", "another model")


@pytest.fixture(params=["layer by layer", "in a scan"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of decoding: as on processors, and as on accelerators."""
    if request.param == "in a scan":
        for module in ("generation", "drafting"):
            monkeypatch.setattr(f"chopjax.score.{module}.walks", lambda engine: False)


def engine_of(folder: Path, family: str, **sizes: Any) -> Engine:
    sizes = {"vocab_size": 97} | sizes
    checkpoints.write_checkpoint(folder, family, **sizes)
    return open_engine(str(folder), dtype="float32")[1]


def draft_of(kind: str, engine: Engine) -> Draft:
    """One that the model often agrees with, and often does not."""
    depth = engine.config.num_layers
    if kind == "first layers":
        return of_layers(engine, range(depth - 1))
    if kind == "other layers":
        return of_layers(engine, [0, depth - 1])
    noisy = jax.tree.map(
        lambda w: w + 0.3 * w.std() * jax.random.normal(jax.random.key(7), w.shape), engine.params
    )
    return of_model(engine, engine.with_params(noisy))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *(("layer by layer", kind) for kind in DRAFTS[1:]),
        ("in a scan", DRAFTS[2]),
        pytest.param("layer by layer", DRAFTS[0], marks=pytest.mark.thorough),
        *(pytest.param("in a scan", kind, marks=pytest.mark.thorough) for kind in DRAFTS[:2]),
    ],
    indirect=["way"],
)
@pytest.mark.parametrize(
    "family", ["gemma3_text", pytest.param("gpt2", marks=pytest.mark.thorough)]
)
def test_greedy_text_is_the_models_own(family: str, kind: str, tmp_path: Path) -> None:
    """Rows that end apart: by a token, by their number, one of them at the first token, and one by
    whoever listens, perhaps in the middle of a draft."""
    engine = engine_of(tmp_path, family)
    plain = dict(generate(engine, PROMPTS, Asked(21)))
    ending = frozenset({plain[0][0], plain[1][6]})
    rules = Rules(repetition_penalty=1.3, suppress_tokens=(plain[2][3],), min_new_tokens=2)

    def ends(prompt: int, ids: list[int]) -> int | None:
        return shortest(ids, lambda some: prompt == 3 and len(some) >= 10)

    for asked in (Asked(21), Asked(21, ending), Asked(13, choice=Choice(rules))):
        expected = dict(generate(engine, PROMPTS, asked, ends))
        drafting = Drafting(engine, draft_of(kind, engine), 3)
        found = dict(drafting.generate(PROMPTS, asked, ends))
        assert {index: one.ids for index, one in found.items()} == expected
        assert len(expected[3]) <= 10
        for one in found.values():
            assert one.drafted == 3 * one.rounds
            # A token of the prompt's, one of each round but perhaps the last, and drafted ones.
            assert len(one.ids) - one.accepted - one.rounds in (0, 1)
    assert drafting.pace is not None
    assert drafting.pace.accepted > 0, "a draft that is always wrong tests little"


def test_equally_likely_tokens(tmp_path: Path) -> None:
    """Of tokens with the same row in the table, plain and drafted text take the same."""
    engine = engine_of(tmp_path, "llama", tie_word_embeddings=True)
    table = engine.params["embed"]["embedding"]
    twins = engine.with_params(
        {**engine.params, "embed": {"embedding": table.at[1::2].set(table[:-1:2])}}
    )
    plain = dict(generate(twins, PROMPTS, Asked(16)))
    found = dict(Drafting(twins, of_layers(twins, [0, 1]), 4).generate(PROMPTS, Asked(16)))
    assert {index: one.ids for index, one in found.items()} == plain
    assert all(token % 2 == 0 for ids in plain.values() for token in ids)


def test_up_to_the_end_of_the_context(tmp_path: Path) -> None:
    """Drafts reach beyond the last position, and nothing of that is seen."""
    engine = engine_of(tmp_path, "gpt2", n_positions=32)
    prompts = [np.arange(1, 12), np.arange(2, 9)]
    asked = Asked(21)
    expected = dict(generate(engine, prompts, asked))
    found = dict(Drafting(engine, of_layers(engine, [0]), 8).generate(prompts, asked))
    assert {index: one.ids for index, one in found.items()} == expected


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "way",
    ["layer by layer", pytest.param("in a scan", marks=pytest.mark.thorough)],
    indirect=True,
)
def test_a_draft_that_is_the_model_is_always_right(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, "llama")
    whole = of_layers(engine, range(engine.config.num_layers))
    for sampling in (Sampling(), Sampling(0.8)):
        asked = Asked(16, choice=Choice(sampling=sampling))
        found = dict(Drafting(engine, whole, 4).generate(PROMPTS, asked))
        assert all(one.accepted == one.drafted for one in found.values())
        assert all(one.rounds == 3 for one in found.values())  # 15 tokens, five a round


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "way",
    ["layer by layer", pytest.param("in a scan", marks=pytest.mark.thorough)],
    indirect=True,
)
@pytest.mark.parametrize("with_draft", [pytest.param(False, marks=pytest.mark.thorough), True])
@pytest.mark.parametrize(("V", "N"), [(6, 1024), pytest.param(9, 4096, marks=pytest.mark.thorough)])
def test_draws_are_from_the_models_distribution(
    with_draft: bool, V: int, N: int, tmp_path: Path
) -> None:
    """N draws of three tokens out of V, chi-square at p = 1e-4 with fixed seeds; the draft's
    own law is refused by the same test."""
    engine = engine_of(tmp_path, "llama", vocab_size=V)
    # Weights so small that most texts are likely.
    engine = engine.with_params(jax.tree.map(lambda w: w / 2, engine.params))
    engine.budget = dataclasses.replace(engine.budget, tokens=1 << 17)
    draft = of_layers(engine, [1])
    asked = Asked(3, choice=Choice(sampling=Sampling(0.7, 0.9)), seed=5)
    prompts = [np.array([1, 2])] * N
    if with_draft:
        drawn = {n: c.ids for n, c in Drafting(engine, draft, 2).generate(prompts, asked)}
    else:
        drawn = dict(generate(engine, prompts, asked))
    texts = list(itertools.product(range(V), repeat=3))
    counts = np.zeros(len(texts))
    for ids in drawn.values():
        counts[texts.index(tuple(ids))] += 1
    assert p_value(counts, law(engine, texts)) > 1e-4
    assert p_value(counts, law(draft.engine, texts)) < 1e-4


def law(engine: Engine, texts: list[tuple[int, ...]]) -> np.ndarray:
    """The likelihood of each text behind the prompt, by the definition."""
    ids = np.array([[1, 2, *text] for text in texts], np.int32)
    B, T = ids.shape
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    given = engine.params, engine.config, engine.compute, jnp.asarray(ids), places, causal
    hidden, _ = decoder.extend(*given)
    all_logits = np.asarray(logits(head_of(engine.params, engine.config), hidden), np.float64)
    likelihood = np.ones(B)
    for row in range(B):
        for place in range(1, T - 1):
            scaled = all_logits[row, place] / 0.7
            p = np.exp(scaled - scaled.max())
            p /= p.sum()
            order = np.argsort(-p)
            kept = order[np.cumsum(p[order]) - p[order] < 0.9]
            cut = np.zeros_like(p)
            cut[kept] = p[kept] / p[kept].sum()
            likelihood[row] *= cut[ids[row, place + 1]]
    return likelihood


def p_value(counts: np.ndarray, likelihood: np.ndarray) -> float:
    """Of chi-square; texts that are expected fewer than five times are one cell."""
    expected = likelihood * counts.sum()
    often = expected >= 5
    seen = [*counts[often], counts[~often].sum()]
    wanted = [*expected[often], expected[~often].sum()]
    if wanted[-1] == 0:
        if seen[-1]:
            return 0.0
        seen, wanted = seen[:-1], wanted[:-1]
    return float(scipy.stats.chisquare(seen, wanted).pvalue)


def test_draws_depend_on_the_prompts_number_alone(tmp_path: Path) -> None:
    """The same text whatever else is in the batch; another seed, another text."""
    engine = engine_of(tmp_path, "llama")
    choice = Choice(sampling=Sampling(1.0))
    together = dict(generate(engine, PROMPTS, Asked(9, choice=choice, seed=3)))
    alone = dict(generate(engine, PROMPTS[:1], Asked(9, choice=choice, seed=3)))
    assert together[0] == alone[0]
    assert dict(generate(engine, PROMPTS[:1], Asked(9, choice=choice, seed=4))) != alone


def test_drafts_of_another_kind_are_refused(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "a", "llama")
    other = engine_of(tmp_path / "b", "llama", vocab_size=96)
    with pytest.raises(UserError, match="a vocabulary of 96, the model one of 97"):
        of_model(engine, other)
    with pytest.raises(UserError, match="its vocabulary has 97 tokens, and the model's 96"):
        of_model(other, engine)


def test_the_length_of_drafts_follows_what_they_bring() -> None:
    """Against the formula's own optimum, by hand: α = 0.8 and c = 0.1."""
    pace = Pace(plain=1.0, draft=0.1, length=4, round=1.4, accepted=80, refused=20)
    assert pace.acceptance == 0.8
    by_hand = {k: (1 + 0.1 * k) * 0.2 / (1 - 0.8 ** (k + 1)) for k in range(1, 12)}
    assert pace.best_length() == min(by_hand, key=by_hand.__getitem__)
    assert pace.seconds_a_token(4) == pytest.approx(by_hand[4])
    # A draft that costs as much as it brings is none.
    assert Pace(plain=1.0, draft=0.6, length=4, round=3.4, accepted=5, refused=5).best_length() == 0


@pytest.mark.parametrize("length", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_useless_draft_is_given_up(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or shortened, and then nothing of the first length is in the figures of a round."""
    engine = engine_of(tmp_path, "llama", max_position_embeddings=256)
    monkeypatch.setattr(Pace, "best_length", lambda pace: length)
    asked = Asked(60)
    drafting = Drafting(engine, draft_of("other layers", engine), None)
    found = dict(drafting.generate(PROMPTS, asked))
    expected = dict(generate(engine, PROMPTS, asked))
    assert {index: one.ids for index, one in found.items()} == expected
    after = sum(one.rounds - 8 for one in found.values())
    assert sum(one.drafted for one in found.values()) == 4 * 4 * 8 + length * after
    assert drafting.pace is not None
    assert drafting.pace.length == (length or 4)
    assert drafting.pace.rounds == (after if length else 4 * 8)


def test_a_round_is_timed_where_a_token_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of the first one's shape: of two batches here, only the first has it."""
    engine = engine_of(tmp_path, "llama")
    engine.budget = dataclasses.replace(engine.budget, tokens=96)
    drafting = Drafting(engine, draft_of("first layers", engine), 4)
    made = drafting.generate(PROMPTS[:3], Asked(9))
    assert next(made)[0] == 2, "the longest"
    assert drafting.pace is not None
    drafting.pace.round = 123.0
    rounds = drafting.pace.rounds
    assert len(list(made)) == 2
    assert drafting.pace.round == 123.0
    assert drafting.pace.rounds > rounds
