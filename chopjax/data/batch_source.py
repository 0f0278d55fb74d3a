"""What a training run or an evaluation reads its batches from."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Rows = dict[str, np.ndarray]  # some rows of a batch, on the host


class BatchSource(Protocol):
    """Batches by number. A batch is a pure function of the source and its number, so that resuming
    and giving each process its rows are arithmetic; nothing is iterated or remembered."""

    @property
    def batch_size(self) -> int: ...

    @property
    def sequence_length(self) -> int: ...

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON: of what is read, so far as settings do not say it. A run that goes on must find the
        same again."""
        ...

    @property
    def record(self) -> Any:
        """JSON for people, kept in run.json: what is read."""
        ...

    def check(self, tokenizer: str | None, vocab_size: int) -> None:
        """Raise UserError where the tokens are not those of a model's tokenizer, given by its
        fingerprint, or go beyond its vocabulary."""
        ...

    def rows(self, index: int, rows: slice) -> Rows:
        """Some rows of batch number `index`, such as one process needs:

        tokens, targets, segments, positions: int32 [B, T]; weights: float32 [B, T]; and what else
        the source has for an objective.
        """
        ...
