"""What pruning looks at, and what its loss is measured on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.analysis import LONGEST, MOST_SEQUENCES
from chopjax.chop.calibration import CalibrationBatch, make_batches, predicted_tokens
from chopjax.data.excerpts import excerpts, others
from chopjax.data.tokenizer import check_ids, load_tokenizer
from chopjax.errors import UserError
from chopjax.progress import progress

HELD_BACK = 16  # sequences of the same text that the loss is measured on
BATCH = 8  # sequences that run side by side


@dataclasses.dataclass(frozen=True)
class Text:
    """calibration, held_out: batches of one shape; the second are the first where the text has no
    more (`held_back` says so). sha256: of all their tokens."""

    calibration: tuple[CalibrationBatch, ...]
    held_out: tuple[CalibrationBatch, ...]
    held_back: bool
    sequences: int
    sequence_length: int
    tokens: int
    sha256: str

    def record(self, inputs: Sequence[str], seed: int) -> dict[str, Any]:
        """What chopjax.json says of it (card_sparsity.py), the losses apart."""
        return {
            "text": list(inputs),
            "sequences": self.sequences,
            "sequence_length": self.sequence_length,
            "seed": seed,
            "tokens": self.tokens,
            "loss_tokens": predicted_tokens(self.held_out),
            "loss_held_back": self.held_back,
        }


def read_text(
    checkpoint: Checkpoint,
    inputs: Sequence[str],
    sequences: int,
    length: int,
    seed: int,
    field: str,
) -> Text:
    """Excerpts of text. length: tokens at most, 0 for the context length but at most 2048.

    Raises UserError for numbers out of range, and where there is no text."""
    most = checkpoint.config.max_positions
    if not 1 <= sequences <= MOST_SEQUENCES:
        raise UserError(f"--sequences {sequences}: from 1 to {MOST_SEQUENCES:,}")
    if not 0 <= length <= most or length == 1:
        raise UserError(f"--sequence-length {length}: between 2 and the model's {most} positions")
    length = length or min(most, LONGEST)
    tokenizer = load_tokenizer(checkpoint.name, checkpoint.revision)
    with progress("read the text"):
        taken = excerpts(inputs, tokenizer, sequences, length, seed, field)
        held_back = others(taken, inputs, tokenizer, HELD_BACK, length, seed, field)
    check_ids([*taken, *held_back], checkpoint.config.vocab_size, lambda: tokenizer)
    size = min(BATCH, len(taken))
    longest = max(map(len, [*taken, *held_back]))
    calibration = tuple(make_batches(taken, size, longest))
    return Text(
        calibration=calibration,
        held_out=tuple(make_batches(held_back, size, longest)) if held_back else calibration,
        held_back=bool(held_back),
        sequences=len(taken),
        sequence_length=length,
        tokens=sum(map(len, taken)),
        sha256=hashlib.sha256(json.dumps([taken, held_back]).encode()).hexdigest(),
    )
