"""What a line of a figure shows; matplotlib's own types allow for more than lists of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.lines import Line2D


def xs(line: Line2D) -> list[Any]:
    return np.asarray(line.get_xdata()).tolist()


def ys(line: Line2D) -> list[Any]:
    return np.asarray(line.get_ydata()).tolist()
