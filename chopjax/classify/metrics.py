"""What predictions are worth. No jax. Axes: X examples, C classes."""

from __future__ import annotations

import numpy as np


def accuracy(labels_X: np.ndarray, predicted_X: np.ndarray) -> float:
    """The share that is right."""
    return float(np.mean(labels_X == predicted_X))


def macro_f1(labels_X: np.ndarray, predicted_X: np.ndarray, classes: int) -> float:
    """The mean of the classes' F1 = 2·TP / (2·TP + FP + FN), over those that occur among labels or
    predictions (scikit-learn's f1_score, average="macro")."""
    label_C, own_X = np.arange(classes)[:, None], labels_X[None]
    right_C = np.sum((own_X == label_C) & (predicted_X[None] == label_C), axis=1)
    sizes_C = np.sum(own_X == label_C, axis=1) + np.sum(predicted_X[None] == label_C, axis=1)
    occurs_C = sizes_C > 0
    return float(np.mean(2 * right_C[occurs_C] / sizes_C[occurs_C]))


def majority(labels_X: np.ndarray) -> float:
    """The accuracy of who always says the commonest class."""
    return float(np.bincount(labels_X).max() / len(labels_X))
