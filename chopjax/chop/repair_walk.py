"""Parent and student side by side, on the way up through the layers.

Every layer of the parent runs once on every sequence, and so does every kept layer of the student
(those before a gap twice, before and after the repair). States wait on the host between layers:
memory there is two float32 states of the calibration text, N·T·D·8 bytes, one before the first gap.
On the device are the parent, one batch, and of the student what differs from the parent: a stack of
down projections, or all blocks where layers were merged.

Axes: B batch, T time, D model, L layers, N tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.chop.calibration import CalibrationBatch
from chopjax.chop.fold_place import Gap, gaps_of
from chopjax.chop.prefixes import advance, embed
from chopjax.keep import Keep
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params


def layer_runs(keep: Keep, num_layers: int, kind: str) -> int:
    """Layers that run on the whole text while gaps are repaired."""
    gaps = gaps_of(keep, num_layers)
    shared = gaps[0].first - (gaps[0].before is not None)
    later = [layer for layer in keep if shared <= layer < gaps[-1].first]
    again = 0 if kind == "scalar" else len(gaps)
    return gaps[-1].last + 1 + len(later) + again


class Errors:
    """How far the stream is from the parent's behind a gap, added up over tokens."""

    def __init__(self) -> None:
        self._lack = self._size = self._ratio = 0.0
        self._tokens = 0

    def add(self, lack_ND: np.ndarray, end_ND: np.ndarray) -> None:
        """lack: E - S. end: E."""
        lack_N, size_N = np.square(lack_ND).sum(axis=-1), np.square(end_ND).sum(axis=-1)
        self._lack += float(lack_N.sum())
        self._size += float(size_N.sum())
        self._ratio += float(np.sqrt(lack_N / np.maximum(size_N, 1e-300)).sum())
        self._tokens += len(lack_N)

    def named(self, when: str) -> dict[str, float]:
        """|E - S| / |E|: of all tokens together, where the largest states weigh most, as they do in
        least squares; and the mean over tokens."""
        return {
            f"error_{when}": float(np.sqrt(self._lack / max(self._size, 1e-300))),
            f"token_error_{when}": self._ratio / max(self._tokens, 1),
        }


class Walk:
    """States of parent and student on the way up, both [B, T, D] float32 on the host, a batch each.

    `to` leaves the parent behind a gap, and the student before the layer that stands in front."""

    def __init__(
        self,
        parent: Params,
        student: Params,
        config: ModelConfig,
        student_config: ModelConfig,
        compute: Compute,
        batches: Sequence[CalibrationBatch],
        done: Callable[[int], None],
    ):
        self.config, self.student = student_config, student
        self._parent, self._parent_config = parent, config
        self._compute, self._done = compute, done
        self._order_L = np.arange(config.num_layers, dtype=np.int32)
        length = batches[0].tokens_BT.shape[1]
        self.real = [np.arange(length)[None] < np.asarray(b.lengths_B)[:, None] for b in batches]
        self.ends = [np.asarray(embed(parent, b, config, compute), np.float32) for b in batches]
        self.starts = list(self.ends)  # the arrays themselves until the first gap
        self._at = 0  # the layer that both run next

    def to(self, gap: Gap) -> None:
        before = gap.first if gap.before is None else gap.before
        apart = any(a is not b for a, b in zip(self.starts, self.ends, strict=True))
        self._run(self._parent, self._parent_config, self.ends, self._at, before)
        if apart:
            self._run(self.student, self.config, self.starts, self._at, before)
        else:
            self.starts = list(self.ends)
        self._run(self._parent, self._parent_config, self.ends, before, gap.last + 1)
        self._at = gap.last + 1

    def pass_layer(self, layer: int) -> None:
        """The student through one of its layers."""
        self._run(self.student, self.config, self.starts, layer, layer + 1)

    def _run(
        self, params: Params, config: ModelConfig, states: list[np.ndarray], start: int, stop: int
    ) -> None:
        if stop == start:
            return
        for index, state_BTD in enumerate(states):
            interrupts.check()
            after_BTD = advance(
                params, state_BTD, self._order_L, start, stop, config, self._compute
            )
            states[index] = np.asarray(after_BTD, np.float32)
        self._done(stop - start)

    def halves(self, layer: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of every batch, its real tokens as float64 [N, D]: the two sides of the sum that leaves
        the student's layer, and the parent's state behind the gap."""
        for start_BTD, end_BTD, real_BT in zip(self.starts, self.ends, self.real, strict=True):
            interrupts.check()
            both = _halves(self.student, start_BTD, layer, self.config, self._compute)
            rest_ND, fed_ND = (np.asarray(half, np.float64)[real_BT] for half in both)
            yield rest_ND, fed_ND, end_BTD[real_BT].astype(np.float64)
        self._done(1)

    def states(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of every batch, its real tokens as float64 [N, D]: student's and parent's state."""
        for start_BTD, end_BTD, real_BT in zip(self.starts, self.ends, self.real, strict=True):
            yield start_BTD[real_BT].astype(np.float64), end_BTD[real_BT].astype(np.float64)

    def errors(self) -> Errors:
        errors = Errors()
        for start_ND, end_ND in self.states():
            errors.add(end_ND - start_ND, end_ND)
        return errors


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _halves(
    params: Params, hidden_BTD: jax.Array, layer: jax.Array, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """decoder.Parts.halves of one layer, or, where a norm follows the sum, nothing and all."""
    positions_BT = jnp.arange(hidden_BTD.shape[1], dtype=jnp.int32)[None]
    parts = decoder.parts(params, config, compute, positions_BT)
    picked = jax.tree.map(
        lambda stacked: jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False), parts.stack
    )
    if config.norm_place == "residual":
        whole_BTD = parts.block(hidden_BTD, picked)
        return jnp.zeros_like(whole_BTD), whole_BTD
    return parts.halves(hidden_BTD, picked)
