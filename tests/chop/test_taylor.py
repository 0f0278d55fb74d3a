"""Taylor importance against torch's gradients."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import families
import numpy as np
import pytest
import torch
import transformers

from chopjax.checkpoint.load import load
from chopjax.chop.calibration import make_batches
from chopjax.chop.taylor import taylor
from chopjax.models.compute import Compute

IGNORED = -100


def by_torch(model: transformers.PreTrainedModel, rows: list[list[int]]) -> list[float]:
    """Σ|w·g| of each layer, g of the mean loss over all predicted tokens of the rows."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED] * (length - len(row)) for row in rows])
    model.zero_grad()
    model(tokens, labels=labels).loss.backward()
    parent, name = checkpoints.blocks_of(model)
    blocks = getattr(parent, name)
    return [
        sum((w.detach().double() * w.grad.double()).abs().sum().item() for w in block.parameters())
        for block in blocks
    ]


@pytest.mark.parametrize("family", families.BY_LAYER)
def test_scores_are_those_of_torch(tmp_path: Path, family: str) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", family)
    ours = load(str(tmp_path / "m"))
    draw = np.random.default_rng(0)
    rows = [draw.integers(1, 97, length).tolist() for length in (19, 7, 12)]
    found = taylor(ours.params, ours.config, Compute(), make_batches(rows, 2))
    model = checkpoints.random_model(family)
    wanted = np.mean([by_torch(model, rows[:2]), by_torch(model, rows[2:])], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=2e-4)
