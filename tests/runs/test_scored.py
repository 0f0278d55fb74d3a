"""Score's results as reports take them."""

from __future__ import annotations

from typing import Any

import pytest

from chopjax.runs.scored import headlines, limit, measured_on
from chopjax.runs.settings import ScoreSettings

RESULTS: dict[str, Any] = {
    "results": {
        "both": {"alias": "both", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.75}
        | {"acc_norm_stderr,none": "N/A"},
        "plain": {"acc,none": 0.25, "acc_stderr,none": 0.05},
        "worded": {"exact_match,strict": 0.125, "exact_match_stderr,strict": 0.01}
        | {"exact_match,lax": 0.25, "exact_match_stderr,lax": 0.02, "f1,lax": 0.5},
    },
    "chance": {"both": 0.5, "plain": 0.25},
}


def test_a_headline_is_the_length_normalised_accuracy_where_there_is_one() -> None:
    assert headlines(RESULTS, ()) == {
        "accuracy": {"both": [0.75, None], "plain": [0.25, 0.05], "worded": [0.125, 0.01]},
        "chance": {"both": 0.5, "plain": 0.25, "worded": 0.0},
        "texts": {},
    }


def test_every_metric_of_every_task() -> None:
    assert measured_on(RESULTS, ()) == {
        "accuracies": {
            "both acc": (0.5, 0.1),
            "both acc_norm": (0.75, None),
            "plain acc": (0.25, 0.05),
            "worded exact_match (strict)": (0.125, 0.01),
            "worded exact_match (lax)": (0.25, 0.02),
            "worded f1 (lax)": (0.5, None),
        },
        "texts": {},
    }


@pytest.mark.parametrize(("asked", "found"), [(0.0, 0), (100.0, 100), (0.25, 0.25)])
def test_a_limit_is_a_number_or_a_share(asked: float, found: float) -> None:
    """A whole number stays one: figures that were measured with it are known by it."""
    value = limit(ScoreSettings(limit=asked))
    assert value == found
    assert type(value) is type(found)
