"""Measures beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from chopjax.classify.metrics import accuracy, macro_f1, majority


@pytest.mark.parametrize("seed", range(8))
def test_beside_scikit_learn(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    classes = int(drawn.integers(2, 7))
    labels, predicted = (drawn.integers(0, drawn.integers(1, classes + 1), 12) for _ in range(2))
    assert accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, average="macro")
    assert macro_f1(labels, predicted, classes) == pytest.approx(expected)


def test_the_commonest_class() -> None:
    assert majority(np.array([2, 2, 0, 2])) == 0.75
