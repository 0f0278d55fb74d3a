"""The fewest ids that are enough, beside counting up."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from chopjax.score.ending import shortest
from chopjax.score.generation import Asked, Rows


@hypothesis.given(st.integers(1, 40), st.integers(1, 50))
def test_the_fewest_that_are_enough(length: int, needed: int) -> None:
    found = shortest(range(length), lambda ids: len(ids) >= needed)
    counted = [n for n in range(1, length + 1) if n >= needed]
    assert found == (counted[0] if counted else None)


@hypothesis.given(st.integers(1, 7))
def test_rows_end_at_the_same_token_at_any_pace(pace: int) -> None:
    """By an end-of-text token, by their length, and by whoever listens: here at two sevens."""

    def ends(prompt: int, ids: list[int]) -> int | None:
        return shortest(ids, lambda some: list(some).count(7) == 2)

    texts = [[4, 2, 9, 4, 4], [1] * 12, [7, 3, 7, 5, 9], [7, 9, 7]]
    rows, took = Rows(range(4), Asked(8, frozenset({9})), ends), [0] * 4
    for place in range(0, 12, pace):
        new = [(text + [0] * 12)[place : place + pace] for text in texts]
        took = [a + b for a, b in zip(took, rows.add(new), strict=True)]
    assert rows.ids == [[4, 2, 9], [1] * 8, [7, 3, 7], [7, 9]]
    assert took == [len(ids) for ids in rows.ids]
    assert not rows.open()
