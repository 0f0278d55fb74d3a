"""Repairing a gap: the right map, in the right weights, of every kind of family."""

from __future__ import annotations

from typing import Any

import checkpoints
import families
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from chopjax.chop.calibration import make_batches
from chopjax.chop.fold_place import gaps_of, map_place, scalar_place, with_bias
from chopjax.chop.merge import average, bases, plain
from chopjax.chop.prefixes import Prefixes
from chopjax.chop.repair_params import Repaired, repair_params, student_of
from chopjax.chop.repair_walk import layer_runs
from chopjax.errors import UserError
from chopjax.keep import Keep
from chopjax.models.compute import Compute
from chopjax.models.families import translate

KEEP = (0, 1, 3)
COMPUTE = Compute()


def in_memory(family: str, seed: int = 0, **options: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    model = checkpoints.random_model(family, seed, **options)
    raw = model.config.to_dict()
    return model, *checkpoints.in_memory(model, raw), raw


def sequences(count: int = 6, length: int = 40, vocabulary: int = 97) -> list[list[int]]:
    """Of different lengths, so that there is filling."""
    draw = np.random.default_rng(7).integers(1, vocabulary, (count, length))
    return [row[: length - 3 * number].tolist() for number, row in enumerate(draw)]


def repaired(
    params: Any, config: Any, kind: str, keep: Keep = KEEP, ridge: float = 0.0, **more: Any
) -> Repaired:
    student = more.pop("student", params)
    student_config = more.pop("student_config", config)
    batches = make_batches(sequences(), 4)
    return repair_params(
        params, student, config, student_config, COMPUTE, batches, keep, kind, ridge, **more
    )


def recorded(model: Any, raw: dict[str, Any], layer: int) -> dict[str, np.ndarray]:
    """What transformers computes, of the real tokens side by side: `fed` leaves the feed-forward of
    a layer with its norm, `states` stand between the layers."""
    family, config = translate(raw)
    place = map_place(config, "linear")
    kernel = place.kernel
    naming = family.prefixes[0]
    row = next(row for row in family.rows if kernel in row.targets)
    name = row.source.replace("{p}", naming).replace("{l}", str(layer)).removesuffix(".weight")
    found: dict[str, list[torch.Tensor]] = {"fed": [], "states": []}
    module = dict(model.named_modules())[name]
    blocks, stack = checkpoints.blocks_of(model)
    taken: list[torch.Tensor] = []
    hooks = [module.register_forward_hook(lambda m, i, o: found["fed"].append(o.reshape(-1, 1)))]
    width = config.embed_dim

    def note(module: Any, arguments: Any, options: Any) -> None:
        taken.append((arguments[0] if arguments else options["hidden_states"]).reshape(-1, width))

    def note_end(module: Any, arguments: Any, output: Any) -> None:
        taken.append((output[0] if isinstance(output, tuple) else output).reshape(-1, width))

    every = list(getattr(blocks, stack))
    hooks += [block.register_forward_pre_hook(note, with_kwargs=True) for block in every]
    hooks += [every[-1].register_forward_hook(note_end)]
    with torch.no_grad():
        for ids in sequences():
            taken.clear()
            model(torch.tensor([ids]), use_cache=False)
            found["states"].append(torch.stack(taken))
    for hook in hooks:
        hook.remove()
    fed = torch.cat([part.reshape(-1, width) for part in found["fed"]])
    states = torch.cat(found["states"], dim=1)
    return {"fed": fed.double().numpy(), "states": states.double().numpy()}


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "opt", "gpt_neox", "cohere", "granite", "phi", "mpt"]
)
def test_the_linear_map_is_numpys_least_squares_on_transformers_states(family: str) -> None:
    model, config, params, raw = in_memory(family)
    seen = recorded(model, raw, layer=1)
    lack = seen["states"][3] - seen["states"][2]  # E - S for the gap at layer 2
    added = seen["fed"] * config.residual_scale
    whole = np.eye(config.embed_dim) + np.linalg.lstsq(added, lack, rcond=None)[0]
    found = repaired(params, config, "linear")
    down = params["blocks"]["mlp"]["down"][1].astype(np.float64)
    np.testing.assert_allclose(found.values["blocks/mlp/down", 1], down @ whole, atol=3e-3)
    names = {("blocks/mlp/down", 1)} | ({("blocks/mlp/down_bias", 1)} if config.mlp_bias else set())
    assert set(found.values) == names
    if config.mlp_bias:
        bias = params["blocks"]["mlp"]["down_bias"][1] @ whole
        np.testing.assert_allclose(found.values["blocks/mlp/down_bias", 1], bias, atol=3e-3)
    (gap,) = found.gaps
    assert (gap["layers"], gap["folded_into"]) == ("2", 1)
    left = np.linalg.norm(lack - added @ (whole - np.eye(len(whole))))
    size = np.linalg.norm(seen["states"][3])
    assert gap["error_before"] == pytest.approx(np.linalg.norm(lack) / size, rel=1e-4)
    assert gap["error_after"] == pytest.approx(left / size, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_the_affine_map_has_the_constant_in_the_bias(family: str) -> None:
    model, config, params, raw = in_memory(family)
    seen = recorded(model, raw, layer=1)
    lack = seen["states"][3] - seen["states"][2]
    with_one = np.c_[seen["fed"], np.ones(len(lack))]
    change = np.linalg.lstsq(with_one, lack, rcond=None)[0]
    found = repaired(params, config, "affine")
    whole = np.eye(config.embed_dim) + change[:-1]
    bias = params["blocks"]["mlp"]["down_bias"][1] @ whole + change[-1]
    np.testing.assert_allclose(found.values["blocks/mlp/down_bias", 1], bias, atol=3e-3)
    assert found.gaps[0]["error_after"] < repaired(params, config, "linear").gaps[0]["error_after"]


def test_a_family_gets_biases_where_its_config_can_say_so() -> None:
    _, config, params, raw = in_memory("granite")
    family, _ = translate(raw)
    wide = with_bias(family, raw, config)
    assert wide is not None
    found = repaired(params, config, "affine", student_config=wide)
    bias = found.values["blocks/mlp/down_bias", 1]
    assert np.abs(bias).max() > 0
    assert not np.asarray(found.params["blocks"]["mlp"]["up_bias"]).any()
    assert found.gaps[0]["error_after"] < repaired(params, config, "linear").gaps[0]["error_after"]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("olmo2", {}),
        ("gemma2", {}),
        ("glm4", {}),
        ("opt", {"do_layer_norm_before": False}),
    ],
)
def test_behind_a_norm_the_map_is_a_factor_a_channel(family: str, options: dict[str, Any]) -> None:
    model, config, params, raw = in_memory(family, **options)
    keep = tuple(layer for layer in range(config.num_layers) if layer != 2)
    place = map_place(config, "linear")
    seen = recorded(model, raw, layer=1)
    lack = seen["states"][3] - seen["states"][2]
    x = seen["fed"]
    factors = 1 + (x * lack).sum(axis=0) / (x * x).sum(axis=0)
    found = repaired(params, config, "linear", keep)
    scale = flatten_dict(params, sep="/")[place.kernel][1]
    expected = (scale + config.norm.offset) * factors - config.norm.offset
    np.testing.assert_allclose(found.values[place.kernel, 1], expected, rtol=2e-4, atol=2e-5)
    assert found.gaps[0]["error_after"] < found.gaps[0]["error_before"]


@pytest.mark.parametrize("name", families.KINDS)
def test_every_kind_gains_and_the_walk_ends_where_the_folded_model_does(name: str) -> None:
    """Several gaps, from the input upwards: the states that the last error is measured on are
    those of a plain forward pass of the repaired model."""
    _, config, params, _ = in_memory(name, seed=1)
    last = config.num_layers - 1
    keep = tuple(layer for layer in range(config.num_layers) if layer not in (1, last))
    ran: list[int] = []
    found = repaired(params, config, "linear", keep, 0.001, advance_bar=ran.append)
    assert [gap["folded_into"] for gap in found.gaps] == [0, keep[-1]]
    assert all(gap["error_after"] <= gap["error_before"] for gap in found.gaps)
    assert sum(ran) == layer_runs(keep, config.num_layers, "linear")
    whole = tuple(range(config.num_layers))
    batches = make_batches(sequences(), 4)
    total, size = 0.0, 0.0
    for batch in batches:
        ends = []
        for each, layers in ((params, whole), (found.params, keep)):
            prefixes = Prefixes(each, config, COMPUTE, [batch])
            prefixes.losses([layers], lambda keep: [len(keep)])
            ends.append(np.asarray(prefixes._states[0][layers], np.float64))
        real = np.arange(ends[0].shape[1])[None] < batch.lengths_B[:, None]
        total += np.square(ends[0] - ends[1])[real].sum()
        size += np.square(ends[0])[real].sum()
    assert found.gaps[-1]["error_after"] == pytest.approx(np.sqrt(total / size), rel=1e-3)


def _scalars() -> list[str]:
    """Families whose layers read the stream through norms."""
    fitting = []
    for name in families.NAMES:
        _, config = translate({"model_type": name} | families.SIZES[name])
        try:
            scalar_place(config)
        except UserError:
            continue
        fitting.append(name)
    return fitting


def test_most_families_take_a_factor() -> None:
    without = set(families.NAMES) - set(_scalars())
    assert {"olmo2", "olmo3", "exaone4"} <= without
    assert without <= {"olmo2", "olmo3", "exaone4", "olmo", "cohere", "cohere2"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "gpt_neox", "granite"])
def test_a_factor_on_the_stream_changes_nothing_but_its_size(name: str) -> None:
    """The folded model is the chopped one with the stream times c at the gap; up to the norms'
    epsilon."""
    _, config, params, _ = in_memory(name)
    keep = tuple(layer for layer in range(config.num_layers) if layer != 2)
    found = repaired(params, config, "scalar", keep)
    factor = found.gaps[0]["factor"]
    batch = make_batches(sequences(), 6)[0]
    states = []
    for each in (params, found.params):
        prefixes = Prefixes(each, config, COMPUTE, [batch])
        prefixes.losses([keep], lambda keep: [2])
        states.append(np.asarray(prefixes._states[0][keep[:2]]))
    np.testing.assert_allclose(states[1], states[0] * factor, rtol=1e-2, atol=1e-2)
    assert found.gaps[0]["error_after"] <= found.gaps[0]["error_before"]
    assert abs(factor - 1) > 1e-3
    # Without the factor at the gap, the same losses: the head undoes what the table got.
    one = Prefixes(found.params, config, COMPUTE, [batch]).losses([(0, 1)])[0, 1]
    assert one == pytest.approx(Prefixes(params, config, COMPUTE, [batch]).losses([(0, 1)])[0, 1],
                                abs=2e-3)  # fmt: skip


def test_a_gap_at_the_input_takes_a_factor_and_no_map() -> None:
    _, config, params, _ = in_memory("llama", tie_word_embeddings=True)
    found = repaired(params, config, "scalar", (1, 3))
    assert [gap["folded_into"] for gap in found.gaps] == [None, 1]
    assert ("final_norm/scale", None) in found.values
    with pytest.raises(UserError, match="no kept layer before them"):
        repaired(params, config, "linear", (1, 3))


def test_a_large_ridge_is_the_plain_chop() -> None:
    _, config, params, _ = in_memory("gpt2")
    found = repaired(params, config, "linear", ridge=1e20)
    for (path, layer), value in found.values.items():
        np.testing.assert_array_equal(value, flatten_dict(params, sep="/")[path][layer])


def test_merged_layers_are_repaired_as_they_are_merged() -> None:
    _, config, params, _ = in_memory("llama")
    recipe = average(plain(4), 1, 2)
    student, keep = student_of(params, config, recipe), bases(recipe)
    found = repaired(params, config, "linear", keep, student=student)
    up = params["blocks"]["mlp"]["up"]
    np.testing.assert_allclose(student["blocks"]["mlp"]["up"][1], (up[1] + up[2]) / 2, atol=1e-6)
    np.testing.assert_array_equal(
        found.params["blocks"]["mlp"]["up"], student["blocks"]["mlp"]["up"]
    )
    assert found.gaps[0]["error_after"] < found.gaps[0]["error_before"]


def test_gaps_stand_between_kept_layers_and_at_both_ends() -> None:
    shown = [(gap.before, gap.layers) for gap in gaps_of((2, 3, 5), 8)]
    assert shown == [(None, "0-1"), (3, "4"), (5, "6-7")]
    assert not gaps_of((0, 1), 2)


@pytest.mark.parametrize(
    ("family", "options", "kind", "complaint"),
    [
        ("qwen3", {}, "affine", "qwen3 has no bias"),
        ("gemma2", {}, "affine", "norm behind the feed-forward of this gemma2 has no bias"),
        ("olmo2", {}, "scalar", "without a norm before them"),
        ("opt", {"do_layer_norm_before": False}, "scalar", "without a norm before them"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(
    family: str, options: dict[str, Any], kind: str, complaint: str
) -> None:
    raw = {"model_type": family} | families.SIZES[family] | options
    _, config = translate(raw)
    with pytest.raises(UserError, match=complaint):
        (scalar_place if kind == "scalar" else lambda c: map_place(c, kind))(config)
