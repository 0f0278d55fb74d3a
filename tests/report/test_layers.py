"""Figures of an analysis show its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from report.curves import xs, ys

from chopjax.chop.configurations import STRATEGIES
from chopjax.keep import ranges, removed
from chopjax.report import layers

LAYERS = 8


@pytest.fixture
def analysis() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    distance = np.full((LAYERS, LAYERS), np.nan)
    for layer in range(LAYERS):
        distance[layer, : LAYERS - layer] = np.sort(draw.random(LAYERS - layer)) / 2
    distance[0] += 10
    keeps = {
        name: {n: function(LAYERS, n) for n in range(1, 7)} for name, function in STRATEGIES.items()
    }
    return {
        "num_layers": LAYERS,
        "parent_loss": 2.0,
        "settings": {"protect": {"first": 1, "last": 1}},
        "measures": {
            "distance": [[None if np.isnan(x) else x for x in row] for row in distance],
            "influence": [9.0, *draw.random(LAYERS - 1)],
            "one_out_loss": [7.0, *(2.0 + draw.random(LAYERS - 1) / 5)],
        },
        "choices": {
            name: {
                str(n): {"keep": ranges(k), "remove": ranges(removed(k, LAYERS)), "loss": 2 + n / 9}
                for n, k in by_count.items()
            }
            for name, by_count in keeps.items()
        },
    }


def test_heat_map_marks_the_closest_block_of_every_size(analysis: dict[str, Any]) -> None:
    figure = layers.heat_map(analysis)
    free, chosen = figure.axes[0].get_lines()
    table = np.array(analysis["measures"]["distance"], float)
    for count, start in zip(ys(chosen), xs(chosen), strict=True):
        inner = table[1 : LAYERS - count, count - 1]
        assert start == 1 + np.argmin(inner)
    assert ys(chosen) == list(range(1, 7))
    assert len(ys(free)) == LAYERS - 1
    assert figure.axes[0].get_images()[0].get_clim()[1] < 10, "layer 0 must not set the scale"


def test_bars_that_leave_the_scale_bear_their_number(analysis: dict[str, Any]) -> None:
    figure = layers.layer_bars(analysis)
    influence, loss = figure.axes
    assert [text.get_text() for text in influence.texts] == ["9"]
    assert [text.get_text() for text in loss.texts] == ["5"]
    assert "nats" in loss.get_ylabel()
    heights = [bar.get_height() for bar in loss.patches if isinstance(bar, Rectangle)]
    wanted = np.array(analysis["measures"]["one_out_loss"]) - 2
    np.testing.assert_allclose(heights[1:], wanted[1:])


def test_losses_of_choices_with_the_whole_model(analysis: dict[str, Any]) -> None:
    _, named = layers.choice_losses(analysis).axes
    labels = [line.get_label() for line in named.get_lines()]
    assert labels == [*STRATEGIES, "whole model"]
    assert ys(named.get_lines()[0]) == [2 + n / 9 for n in range(1, 7)]


def test_agreement_counts_common_layers(analysis: dict[str, Any]) -> None:
    left, right = layers.agreement(analysis).axes
    texts = [text.get_text() for text in right.texts]
    assert texts[0] == "4"
    keeps = [set(function(LAYERS, 4)) for function in STRATEGIES.values()]
    assert texts[1] == str(LAYERS - len(keeps[0] | keeps[1]))
    assert [label.get_text() for label in left.get_yticklabels()] == list(STRATEGIES)
