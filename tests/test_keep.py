"""Lists of layers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.keep import parse_keep, ranges, removed


def test_parse_keep():
    assert parse_keep("0,13-23", 24) == (0, *range(13, 24))
    assert parse_keep(" 0 , 2 - 4,7", 8) == (0, 2, 3, 4, 7)
    assert parse_keep("5-5", 8) == (5,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0,24", "no layer 24.*0-23"),
        ("0,13-99999999999999", "no layer 99999999999999"),
        ("23-13", "backwards; write 13-23"),
        ("0,0", "layer 0 stands twice"),
        ("0-5,3-8", "layer 3 stands twice"),
        ("5,2", "layer 2 comes after 5"),
        ("0-23", "nothing would be removed"),
        ("", "not a layer"),
        ("0,,2", "not a layer"),
        ("0,-1", "not a layer"),
        ("0:3", "not a layer"),
        ("1.5", "not a layer"),
    ],
)
def test_keep_lists_that_are_wrong(text, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_keep(text, 24)


@given(st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_ranges_round_trip(case):
    layers, kept = case
    keep = tuple(sorted(kept))
    assert sorted((*keep, *removed(keep, layers))) == list(range(layers))
    if 0 < len(keep) < layers:
        assert parse_keep(ranges(keep), layers) == keep
