"""Perplexity of text: by token, and by byte, which does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from chopjax.data.sources import find_sources, pieces
from chopjax.data.tokenizer import Tokenizer
from chopjax.errors import UserError
from chopjax.progress import progress
from chopjax.score.engine import Engine
from chopjax.score.planning import Request

BLOCK = 1 << 20  # tokens that are planned together


def read_texts(inputs: Sequence[str], field: str) -> Iterator[str]:
    """All documents of the inputs (see data/sources.py), in order; progress in bytes of files."""
    sources = find_sources(inputs, field)
    total = sum(source.size or 0 for source in sources)
    with progress("perplexity", total or None, "B") as bar:
        for piece in pieces(sources):
            for part in piece:
                yield from part.texts(lambda read: bar.advance(read))


def perplexity(
    engine: Engine, tokenizer: Tokenizer, texts: Iterable[str], truncate: bool = False
) -> dict[str, Any]:
    """Loss of a model on documents, each on its own, with its convention.

    A document is its ids behind one BOS token (EOS where the tokenizer has none), which is not
    predicted. It is read in windows of engine.max_length tokens, each id predicted once: the first
    id of a window sees the one before it, the last window is full and predicts what is left.
    truncate: instead, only the first engine.max_length ids are taken, BOS included. Bytes are those
    of the predicted text in UTF-8. Raises UserError where there is nothing to predict.
    """
    prefix = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if prefix is None:
        raise UserError(
            f"{tokenizer.name}: the tokenizer has neither a BOS nor an EOS token to begin with"
        )
    total = np.float64(0)
    count = size = documents = 0
    for block in _blocks(tokenizer, texts):
        requests: list[Request] = []
        for text, ids in block:
            documents += 1
            if truncate and len(ids) >= engine.max_length:
                ids = ids[: engine.max_length - 1]
                text = _beginning(tokenizer, text, len(ids))
            requests += windows([prefix, *ids], engine.max_length)
            size += len(text.encode())
            count += len(ids)
        for score in engine.scores(engine.plan(requests)):
            total -= score.logprobs.sum(dtype=np.float64)
    if not count:
        raise UserError("the data has no text with a token to predict")
    loss = float(total) / count
    bits = float(total) / math.log(2) / size
    begin = "BOS" if tokenizer.bos_id is not None else "EOS"
    taken = (
        f"its first {engine.max_length} ids, {begin} included"
        if truncate
        else f"whole, in windows of {engine.max_length} ids; a window's first id sees one id of "
        "the window before, the last window is full"
    )
    return {
        "nats_per_token": loss,
        "perplexity": _exp(loss),
        "bits_per_byte": bits,
        "byte_perplexity": _exp(bits * math.log(2)),
        "loss_over_log_vocabulary": loss / math.log(engine.config.vocab_size),
        "tokens": count,
        "bytes": size,
        "documents": documents,
        "context_length": engine.max_length,
        "dtype": engine.compute.dtype,
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "convention": (
            f"each document on its own behind one {begin} token ({prefix}), which is not "
            f"predicted; {taken}; natural logarithm; mean over all predicted tokens of all "
            "documents; bytes are those of the predicted text in UTF-8"
        ),
    }


def windows(ids: Sequence[int], length: int) -> list[Request]:
    """(context, continuation) pairs of at most length + 1 ids that predict each id but the first
    once. As lm-evaluation-harness cuts text for loglikelihood_rolling."""
    found: list[Request] = []
    done = 1
    while done < len(ids):
        stop = min(done + length, len(ids))
        start = max(0, stop - length - 1)
        found.append((ids[start:done], ids[done:stop]))
        done = stop
    return found


def _blocks(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[tuple[str, list[int]]]]:
    """Documents with their ids, about BLOCK ids at a time."""
    waiting: list[str] = []
    block: list[tuple[str, list[int]]] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == 256:
            block += zip(waiting, tokenizer.encode_batch(waiting), strict=True)
            waiting = []
            if sum(len(ids) for _, ids in block) >= BLOCK:
                yield block
                block = []
    block += zip(waiting, tokenizer.encode_batch(waiting), strict=True)
    if block:
        yield block


def _beginning(tokenizer: Tokenizer, text: str, count: int) -> str:
    """The text of the first `count` tokens."""
    offsets = tokenizer.backend.encode(text, add_special_tokens=False).offsets
    return text[: offsets[count - 1][1]] if count else ""


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
