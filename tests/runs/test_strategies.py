"""The words of a sweep's `strategies`."""

from __future__ import annotations

import pytest

from chopjax.errors import UserError
from chopjax.narrow.walk import METHODS
from chopjax.runs.strategies import (
    CHOPS,
    SCORES,
    Bits,
    Change,
    Columns,
    Narrow,
    Sparse,
    Strategy,
    kind_of,
    looks,
    parse_strategy,
)


def test_the_words_of_narrow_are_its_methods() -> None:
    assert set(SCORES) == set(METHODS)


@pytest.mark.parametrize("name", CHOPS)
def test_a_chop_by_name_takes_every_number_of_layers(name: str) -> None:
    strategy = parse_strategy(name)
    assert strategy == Strategy(name, name)
    assert strategy.counts([3, 6], 12) == [3, 6]


@pytest.mark.parametrize(
    ("text", "chop", "remove", "changes"),
    [
        ("sparsegpt:2:4", "", "", (Sparse("sparsegpt", "2:4"),)),
        ("wanda:0.50", "", "", (Sparse("wanda", "0.5"),)),
        ("magnitude:4:8", "", "", (Sparse("magnitude", "4:8"),)),
        ("narrow:mlp=0.5", "", "", (Narrow("activation", (("mlp", 0.5),)),)),
        (
            "narrow:gradient:heads=0.25:mlp=0.5",
            "", "", (Narrow("gradient", (("heads", 0.25), ("mlp", 0.5))),),
        ),
        ("int8", "", "", (Bits("int8", "nearest"),)),
        ("dimchop:0.5", "", "", (Columns(0.5),)),
        ("int8+dimchop:0.5", "", "", (Bits("int8", "nearest"), Columns(0.5))),
        (
            "int4+sparsegpt:2:4+int8",
            "", "", (Bits("int4", "nearest"), Sparse("sparsegpt", "2:4"), Bits("int8", "nearest")),
        ),
        ("input:0.25+dimchop:0.5", "input", "0.25", (Columns(0.5),)),
        ("input:0.25+int4", "input", "0.25", (Bits("int4", "nearest"),)),
        ("block-influence+int4:gptq", "block-influence", "", (Bits("int4", "gptq"),)),
        (
            "magnitude+magnitude:0.5+fp8",
            "magnitude", "", (Sparse("magnitude", "0.5"), Bits("fp8", "nearest")),
        ),
    ],
)  # fmt: skip
def test_what_is_made(text: str, chop: str, remove: str, changes: tuple[Change, ...]) -> None:
    assert parse_strategy(text) == Strategy(text, chop, remove, changes)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("inptu", "'inptu' is not one of input, .* did you mean input"),
        ("int4+input:0.25", "a chop comes first, and input does not"),
        ("int4+int8", "weights in int4 are not quantized again, to 'int8'"),
        ("wanda:0.5+int4+int4:gptq", "weights in int4 are not quantized again, to 'int4:gptq'"),
        ("dimchop:0.5+int4", "nothing comes after dimchop"),
        ("dimchop", "dimchop:SHARE"),
        ("wanda:2:4+dimchop:0.5", "zeros that were made stay"),
        ("wanda:2:4+input", "a chop comes first, and input does not"),
        ("int8:gtpq", "int8 stands alone or as int8:gptq"),
        ("wanda", "share of the weights that go"),
        ("wanda:3:4", "2:4 and 4:8 are known"),
        ("narrow", "say of what"),
        ("narrow:mlp=1.5", "narrow:mlp=1.5: mlp=SHARE, heads=SHARE, embed=SHARE with a share"),
        ("narrow:taylor:mlp=0.5", "activation or gradient"),
        ("narrow:mlp=0.5:mlp=0.6", "mlp=0.6 comes after another of its kind"),
        ("narrow:gradient:mlp=0.5:activation", "activation comes after another of its kind"),
        ("heads=0.25", "narrow:mlp=0.5:heads=0.25"),
        ("input:0.25+", "'' is not one of"),
        ("keep", "keep: say which layers stay, such as keep:0:17-29"),
        ("keep:0::3", "say which layers stay"),
        ("keep:0:x-3", "say which layers stay"),
        ("17-29", "commas are between strategies: a list of layers is keep:0:17-29"),
        ("int4+keep:0:3", "a chop comes first, and keep does not"),
    ],
)
def test_what_is_wrong_is_said(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_strategy(text)


def test_how_many_layers_go() -> None:
    assert parse_strategy("int8").counts([3, 6], 12) == [0]
    assert parse_strategy("input:0.25+int8").counts([6], 12) == [3]
    with pytest.raises(UserError, match="from 1 to 11"):
        parse_strategy("input:12").counts([6], 12)


def test_a_list_of_layers_says_itself_how_many_go() -> None:
    listed = parse_strategy("keep:0:3-5:11+int8")
    assert listed.kept(12) == (0, 3, 4, 5, 11)
    assert listed.counts([3, 6], 12) == [7]
    assert not listed.looks
    for text, complaint in {
        "keep:0:12": "strategies: 'keep:0:12': the list '0,12': there is no layer 12",
        "keep:0-11": "keeps all 12 layers",
        "keep:0:5-3": "5-3 runs backwards",
    }.items():
        with pytest.raises(UserError, match=complaint):
            parse_strategy(text).counts([3], 12)


def test_which_format_comes_of_it() -> None:
    formats = {"int4": "int4", "wanda:0.5+int8": "int8", "int4+wanda:0.5": "", "": ""}
    formats |= {"int4+wanda:0.5+fp8": "fp8", "int8+dimchop:0.5": ""}
    for text, kind in formats.items():
        assert kind_of(parse_strategy(text).changes if text else ()) == kind


def test_which_changes_look_at_a_text() -> None:
    with_text = ("wanda:0.5", "sparsegpt:2:4", "narrow:mlp=0.5", "int4:gptq", "similarity")
    assert all(parse_strategy(text).looks for text in with_text)
    without = ("magnitude:0.5", "int4", "input", "input:2+int8")
    assert not any(parse_strategy(text).looks for text in without)
    assert not any(map(looks, parse_strategy("similarity+int8").changes))
