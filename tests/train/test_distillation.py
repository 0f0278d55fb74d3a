"""The objective with a teacher beside torch: two models of transformers, whole logits."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from chopjax.chop.surgery import chop_params
from chopjax.keep import Keep
from chopjax.models import decoder
from chopjax.models.families import translate
from chopjax.train import projections
from chopjax.train.distillation import distilled, terms_of
from chopjax.train.settings import (
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    Settings,
    TeacherSettings,
)
from chopjax.train.teacher import Teacher

B, T, VOCAB = 3, 20, 97
ALL = TeacherSettings(
    model="t", logits=0.4, temperature=2.0, hidden=0.7, attention=1.3, embedding=50.0, mimic=0.6
)
ATTENTION = {"llama": "self_attn", "gpt2": "attn"}
WIDE = {
    "llama": {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 5},
    "gpt2": {"n_embd": 48, "n_head": 6, "n_layer": 5},
}


def chopped(model: Any, keep: Keep) -> Any:
    """The same model with these layers alone."""
    model = copy.deepcopy(model)
    parent, name = checkpoints.blocks_of(model)
    setattr(parent, name, torch.nn.ModuleList([getattr(parent, name)[layer] for layer in keep]))
    model.config.num_hidden_layers = len(keep)
    return model


def seen(model: Any, family: str, tokens: torch.Tensor) -> tuple[Any, list[Any], list[Any]]:
    """Logits, states behind each layer, attention's outputs."""
    states: list[Any] = []
    attended: list[Any] = []
    parent, name = checkpoints.blocks_of(model)

    def keep(where: list[Any]) -> Any:
        return lambda module, given, made: where.append(made[0] if type(made) is tuple else made)

    hooks = [block.register_forward_hook(keep(states)) for block in getattr(parent, name)]
    hooks += [
        getattr(block, ATTENTION[family]).register_forward_hook(keep(attended))
        for block in getattr(parent, name)
    ]
    found = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return found, states, attended


def by_torch(
    family: str,
    teacher: Any,
    student: Any,
    asked: TeacherSettings,
    taught_by: Keep,
    batch: dict[str, Any],
    maps: dict[str, torch.Tensor],
) -> torch.Tensor:
    """The formula of distillation.py, written out."""
    tokens, targets = (torch.tensor(batch[name]).long() for name in ("tokens", "targets"))
    w = torch.tensor(batch["weights"])
    with torch.no_grad():
        logits_t, states_t, attended_t = seen(teacher, family, tokens)
    logits_s, states_s, attended_s = seen(student, family, tokens)

    def apart(theirs: Any, ours: Any, name: str, layer: int) -> Any:
        if f"blocks/{name}" in maps:
            ours = ours @ maps[f"blocks/{name}"][layer]
        return (w * (theirs - ours).square().mean(-1)).sum()

    nll = cross_entropy(logits_s.flatten(0, 1), targets.flatten(), reduction="none").view(B, T)
    log_p, log_q = (log_softmax(x / asked.temperature, -1) for x in (logits_t, logits_s))
    kl = kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    loss = (w * ((1 - asked.logits) * nll + asked.logits * asked.temperature**2 * kl)).sum()
    for i, layer in enumerate(taught_by):
        loss = loss + asked.hidden * apart(states_t[layer], states_s[i], "hidden", i)
        loss = loss + asked.attention * apart(attended_t[layer], attended_s[i], "attention", i)
        last = (*taught_by[1:], len(states_t))[i] - 1  # before the next layer that teaches
        if asked.mimic and last != layer:
            loss = loss + asked.mimic * apart(states_t[last], states_s[i], "mimic", i)
    tables = [m.get_input_embeddings().weight for m in (teacher, student)]
    ours = tables[1] @ maps["embedding"] if "embedding" in maps else tables[1]
    return loss + asked.embedding * w.sum() * (tables[0].detach() - ours).square().mean()


def raw_of(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return found


def batch_of() -> dict[str, Any]:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCAB, (B, T + 1)).astype(np.int32)
    weights = random.random((B, T)) < 0.8
    weights = (weights / weights.sum()).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def settings_of(asked: TeacherSettings, remat: Any = "dots") -> Settings:
    return Settings(
        data=DataSettings(batch_size=B, sequence_length=T),
        optimizer=OptimizerSettings(z_loss=0.0),
        compute=ComputeSettings(remat=remat, loss_chunk=7),
        teacher=asked,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pair", ["chop", "widths"])
def test_loss_and_gradients_beside_torch(family: str, pair: str) -> None:
    """A chop with a gap within and one at its end; and a student of another width."""
    layers, asked = (0, 2), ALL
    teacher = checkpoints.random_model(family, seed=1)
    student = chopped(checkpoints.random_model(family, seed=2), layers)
    if pair == "widths":
        asked = dataclasses.replace(ALL, mimic=0.0)
        teacher = checkpoints.random_model(family, seed=1, **WIDE[family])
    config, params = checkpoints.in_memory(student, raw_of(student))
    taught = Teacher("t", None, raw_of(teacher), None, layers, {})
    shapes = projections.shapes(config, taught.config, asked)
    assert set(shapes) == (
        {"blocks/hidden", "blocks/attention", "embedding"} if pair == "widths" else set()
    )
    params |= projections.init(shapes, jax.random.key(0))
    maps = {
        path: torch.tensor(np.asarray(value), requires_grad=True)
        for path, value in flatten_dict(projections.of(params), sep="/").items()
    }
    batch = batch_of()
    want = by_torch(family, teacher, student, asked, layers, batch, maps)
    want.backward()

    objective = distilled(config, settings_of(asked), taught)
    frozen = {"teacher": checkpoints.in_memory(teacher, taught.raw_config)[1]}
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (total, metrics), gradients = step(jax.tree.map(jnp.asarray, params), frozen, batch)
    assert float(total) == pytest.approx(want.item(), rel=1e-5)
    assert set(metrics) == {"loss", "kl", "hidden", "attention", "embedding"} | (
        {"mimic"} if pair == "chop" else set()
    )
    for weight in student.parameters():
        weight.data = weight.grad
    expected = flatten_dict(checkpoints.in_memory(student, raw_of(student))[1], sep="/")
    expected |= {f"projections/{path}": np.asarray(each.grad) for path, each in maps.items()}
    got = flatten_dict(gradients, sep="/")
    assert set(got) == set(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-5, err_msg=path)


def test_right_after_a_chop() -> None:
    """Tables and layer 0 are still the teacher's; a copy of it has nothing to learn."""
    teacher = checkpoints.random_model("llama")
    config, params = checkpoints.in_memory(teacher, raw_of(teacher))
    params = jax.tree.map(jnp.asarray, params)
    asked = dataclasses.replace(ALL, mimic=0.0)

    def terms(keep: Keep) -> dict[str, float]:
        taught = Teacher("t", None, raw_of(teacher), None, keep, {})
        objective = distilled(config.keep(keep), settings_of(asked), taught)
        found = jax.jit(objective)(chop_params(params, keep), {"teacher": params}, batch_of())[1]
        return {name: float(value) for name, value in found.items()}

    first = terms((0,))
    assert first["embedding"] == 0
    assert max(first["hidden"], first["attention"]) < 1e-10
    assert first["kl"] > 0.01
    two = terms((0, 3))
    assert two["embedding"] == 0
    assert min(two["hidden"], two["attention"]) > 0.01
    all_of_it = terms((0, 1, 2, 3))
    assert max(abs(value) for name, value in all_of_it.items() if name != "loss") < 1e-5


@pytest.mark.parametrize(
    ("taught_by", "gaps"),
    [
        ((0, 1, 2, 3), None),
        ((0, 3), (2, -1)),
        ((0, 1), (-1, 3)),
        ((1, 2, 3), None),  # nothing of the student's comes before
        ((0, 2), (1, 3)),
    ],
)
def test_where_the_gaps_are(taught_by: Keep, gaps: tuple[int, ...] | None) -> None:
    asked = TeacherSettings(model="t", mimic=1.0)
    found = [(term.name, term.layers) for term in terms_of(asked, taught_by, 4)]
    assert found == ([("mimic", gaps)] if gaps else [])


def test_one_traced_block_of_each_model() -> None:
    """The program is as long for many layers as for few."""

    def length(layers: int) -> int:
        raw = {"model_type": "llama", **checkpoints.TINY, "num_hidden_layers": layers}
        config = translate(raw)[1].keep(range(0, layers, 2))
        taught = Teacher("t", None, raw, None, tuple(range(0, layers, 2)), {})
        objective = distilled(config, settings_of(ALL), taught)
        shapes = [decoder.abstract(each) for each in (config, taught.config)]
        step = jax.grad(lambda p, f: objective(p, {"teacher": f}, batch_of())[0])
        return len(str(jax.make_jaxpr(step)(*shapes)).splitlines())

    assert length(20) == length(40)  # of as many digits: lines are broken by their width
