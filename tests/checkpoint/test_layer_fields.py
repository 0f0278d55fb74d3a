"""Fields about single layers: what they say of the kept ones, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.checkpoint.layer_fields import (
    Indices,
    Keyed,
    Letters,
    Listed,
    Spelled,
    always,
    every,
)
from chopjax.checkpoint.layer_rules import (
    EndsWith,
    FirstLayers,
    FromToStep,
    Holds,
    Must,
    PeriodAndOffset,
    Repeated,
    SharedKeys,
    SparseSteps,
)
from chopjax.checkpoint.structure import follow, kinds, off_rhythm, period, stated_layers
from chopjax.checkpoint.structures import ROWS, WRAPPERS, find
from chopjax.errors import UserError

KEEP = (0, 2, 3, 6)
SHARED = SharedKeys(always(2), 3)
THIRDS = always(3)
PERIODS = PeriodAndOffset("p", "o", (3, 1), idle="experts")


@pytest.mark.parametrize(
    ("field", "config", "changes"),
    [
        (Listed("kinds"), {"kinds": list("abcdefg")}, {"kinds": list("acdg")}),
        (Listed("kinds"), {"kinds": list("abcdefgXY")}, {"kinds": list("acdgXY")}),
        (Listed("kinds"), {}, {}),
        (Listed("kinds"), {"kinds": None}, {}),
        (Listed("sizes", or_one=True), {"sizes": 4}, {}),
        (Letters("text"), {"text": "abcdefg"}, {"text": "acdg"}),
        (Indices("named"), {"named": [2, 5, 6]}, {"named": [1, 3]}),
        (Indices("named"), {"named": [1]}, {"named": []}),
        (Indices("named"), {"named": [99]}, {"named": []}),
        (FirstLayers("first", 3), {"first": 3}, {"first": 2}),
        (FirstLayers("first", 3), {}, {"first": 2}),
        (FirstLayers("first", 0), {}, {}),
        (FirstLayers("first", 0), {"first": 99}, {"first": 4}),
        (SparseSteps(), {}, {}),
        (SparseSteps(), {"mlp_only_layers": []}, {"mlp_only_layers": []}),
        (SparseSteps(), {"mlp_only_layers": [3, 4]}, {"mlp_only_layers": [2]}),
        (
            SparseSteps(),
            {"decoder_sparse_step": 2},
            {"mlp_only_layers": [0, 1, 3], "decoder_sparse_step": 1},
        ),
        (PERIODS, {"experts": 1, "p": 5, "o": 3}, {}),
        (PERIODS, {"p": 7, "o": 6}, {"p": 4, "o": 3}),
        (PERIODS, {"p": 5, "o": 4}, {}),
        (FromToStep(), {}, {"moe_layer_start_index": 1, "moe_layer_end_index": 3}),
        (
            FromToStep(),
            {"moe_layer_start_index": 3, "moe_layer_end_index": 5},
            {"moe_layer_start_index": 2, "moe_layer_end_index": 2},
        ),
        (
            FromToStep(),
            {"moe_layer_start_index": 1, "moe_layer_end_index": 1},
            {"moe_layer_start_index": 4, "moe_layer_end_index": 4},
        ),
        (
            Repeated(),
            {"attention_types": [[["g", "l"], 3], [["g"], 1]]},
            {"attention_types": [[["g"], 1], [["g"], 1], [["l"], 1], [["g"], 1]]},
        ),
        (SHARED, {"num_kv_shared_layers": 0}, {"num_kv_shared_layers": 0}),
        (Must("odd", (False,), "why"), {"odd": False}, {}),
        (Must("odd", (False,), "why"), {}, {}),
    ],
)
def test_follow(field: Any, config: dict[str, Any], changes: dict[str, Any]) -> None:
    assert field.follow(config, 7, KEEP) == changes


def test_shared_keys_go_with_their_source() -> None:
    """Layers 4-6 share; 4 and 6 (sliding) take from layer 2, 5 (full) from layer 3."""
    assert SHARED.follow({}, 7, (0, 2, 3, 6)) == {"num_kv_shared_layers": 1}
    assert SHARED.follow({}, 7, (0, 1)) == {"num_kv_shared_layers": 0}
    assert SHARED.follow({}, 7, (2, 3, 4, 5, 6)) == {}
    with pytest.raises(UserError, match="layers 6 take their keys and values from layer 2, which"):
        SHARED.follow({}, 7, (0, 1, 3, 6))


def test_kinds_that_must_be_there() -> None:
    """Layers 2, 5 are full."""
    assert Holds(THIRDS, "full_attention").follow({}, 7, KEEP) == {}
    with pytest.raises(UserError, match=r"none of the layers to keep is .* Keep one of 2,5"):
        Holds(THIRDS, "full_attention").follow({}, 7, (0, 1))
    assert EndsWith(THIRDS, "full_attention").follow({}, 7, (0, 2)) == {}
    with pytest.raises(UserError, match=r"the last of the layers to keep, 6, is .* one of 2,5"):
        EndsWith(THIRDS, "full_attention").follow({}, 7, KEEP)


def test_keys_that_are_indices() -> None:
    before = {"0": {"a": 1}, "3": {"a": 2}, "4": {}, "full_attention": {}}
    after = {"full_attention": {}, "0": {"a": 1}, "2": {"a": 2}}
    field = Keyed("each")
    assert field.follow({"each": before}, 7, KEEP) == {"each": after}
    assert field.follow({}, 7, KEEP) == {}
    assert field.kinds({"each": {"full_attention": {}}}, 7) is None
    with pytest.raises(UserError, match="each is 3; an object"):
        field.follow({"each": 3}, 7, KEEP)


def test_a_pattern_is_written_out_where_the_cut_breaks_it() -> None:
    field = every("period", 3)
    full, slides = "full_attention", "sliding_attention"
    assert field.follow({}, 7, (0, 2, 5)) == {"layer_types": [slides, full, full]}
    assert field.follow({"period": 7}, 7, (0, 1)) == {"layer_types": [slides, slides]}
    assert field.follow({"period": 8}, 7, (0, 1)) == {}  # all slide, and they go on to
    assert field.follow({"period": 1}, 7, (0, 1)) == {}
    assert field.differs({"layer_types": [full, slides]}, 2)
    assert not field.differs({"layer_types": [slides, slides, full]}, 3)
    assert not field.differs({}, 3)
    old = Spelled("layer_types", lambda c, n: ["linear_attention"] * n, "")
    assert not old.differs({"layer_types": ["mamba"]}, 1)  # its older name


@pytest.mark.parametrize(
    ("field", "config", "message"),
    [
        (Listed("kinds"), {"kinds": "abcdefg"}, "kinds is 'abcdefg'; a list is needed"),
        (Listed("kinds"), {"kinds": [1]}, "kinds has 1 entries for 7 layers"),
        (Letters("text"), {"text": "ab"}, "a text of one letter a layer, 7"),
        (Indices("named"), {"named": [True]}, "a list of layer indices"),
        (Indices("named"), {"named": [-1]}, "a list of layer indices"),
        (Indices("named"), {"named": "0,1"}, "a list of layer indices"),
        (FirstLayers("first"), {"first": -1}, "first is -1; a whole number of at least 0"),
        (FirstLayers("first"), {"first": 10**30}, "first is 1000"),
        (SparseSteps(), {"decoder_sparse_step": 0}, "at least 1 is needed"),
        (every("period", 4), {"period": -4}, "period is -4"),
        (every("period", 4), {"period": "LLLG"}, "period is 'LLLG'"),
        # Layers 0, 2 and 6 of 0, 2, 3, 6.
        (PERIODS, {"p": 2, "o": 0}, "would be 0-1,3, which no period gives"),
        (PERIODS, {"p": 2, "o": 5}, "o 5 is not below p 2"),
        (Repeated(), {"attention_types": "x"}, "a list such as"),
        (Repeated(), {"attention_types": [[["g"], 3]]}, "does not make 7 layers"),
        (Repeated(), {"attention_types": [[["g"], 10**9]]}, "a list such as"),
        (SHARED, {"num_kv_shared_layers": 7}, "7 of 7 layers"),
        (Must("odd", (False,), "it depends"), {"odd": True}, "odd is True: it depends"),
    ],
)
def test_refusals(field: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        field.follow(config, 7, KEEP)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.integers()
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=10,
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_config_is_a_crash(data: st.DataObject) -> None:
    """Whatever the fields hold, it is an answer or a UserError."""
    name = data.draw(st.sampled_from([*ROWS, *WRAPPERS]))
    row = ROWS.get(name) or ROWS[WRAPPERS[name].text]
    keys = [key for field in row.all_fields for key in field.keys]
    keys += [*row.count_keys, "sliding_window", "use_sliding_window", "no_rope_layer_interval"]
    keys += ["quantization_config", "max_window_layers", "sliding_window_pattern", "model_type"]
    part: Any = data.draw(st.dictionaries(st.sampled_from(keys), JSON, max_size=6))
    if name in WRAPPERS:
        part = {"text_config": data.draw(JSON | st.just(part))}
    raw = {**part, "model_type": name}
    try:
        structure = find(raw)
        if structure is None:
            return
        stated_layers(structure, raw)
        kinds(structure, raw, 7)
        period(structure, raw, 7)
        chopped = follow(structure, raw, 7, KEEP, ["model.layers.1.mlp.up_proj.weight"])
        off_rhythm(structure, chopped, 4)
    except UserError:
        pass
