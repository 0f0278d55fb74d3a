"""Perplexity of text: by token, and by byte, which does not depend on the tokenizer."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from chopjax.data.sources import Source, find_sources, read_documents
from chopjax.data.tokenizer import Tokenizer
from chopjax.errors import UserError
from chopjax.progress import progress
from chopjax.score.engine import Engine
from chopjax.score.journal import Journal, prompt_key
from chopjax.score.planning import Request

BLOCK = 1 << 20  # tokens that are planned together


def read_texts(inputs: Sequence[str], field: str) -> Texts:
    """All documents of the inputs, see data/sources.py."""
    return Texts(find_sources(inputs, field))


class Texts:
    """The documents of sources, in order, and how much of their files is read."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._size = sum(source.size or 0 for source in sources)
        self._read = 0

    def __iter__(self) -> Iterator[str]:
        return read_documents(self._sources, self._count)

    def _count(self, read: int) -> None:
        self._read += read

    def expected(self, so_far: int) -> float | None:
        """What all files hold of something of which what is read holds so much; None where their
        size is not known."""
        if not self._size or not self._read:
            return None
        return so_far * max(1.0, self._size / self._read)


class Document(NamedTuple):
    """A document, how many of its tokens were predicted, and their loss in nats, summed."""

    text: str  # what was predicted
    tokens: int
    loss: float


def perplexity(
    engine: Engine, tokenizer: Tokenizer, texts: Iterable[str], truncate: bool = False
) -> dict[str, Any]:
    """Loss of a model on documents, each on its own, with its convention.

    See document_losses. Raises UserError where there is nothing to predict.
    """
    with progress("perplexity", None, "tokens") as bar:

        def planned(tokens: int) -> None:
            bar.expect(texts.expected(tokens) if isinstance(texts, Texts) else None)

        documents = document_losses(
            engine, tokenizer, texts, truncate=truncate, planned=planned, advance=bar.advance
        )
        return summary(engine, tokenizer, documents, truncate=truncate)


def document_losses(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    length: int | None = None,
    truncate: bool = False,
    most: int | None = None,
    journal: Journal | None = None,
    planned: Callable[[int], object] = lambda tokens: None,
    advance: Callable[[int], object] = lambda tokens: None,
) -> Iterator[Document]:
    """The documents with their losses, in order.

    A document is its ids behind one BOS token (EOS where the tokenizer has none), which is not
    predicted. It is read in windows of `length` tokens (engine.max_length by default), each id
    predicted once: the first id of a window sees the one before it, the last window is full and
    predicts what is left. truncate: instead, only the first `length` ids are taken, BOS included.
    most: the document with which so many tokens are predicted is the last. journal: remembers
    losses through a kill. For a progress bar: planned is told how many tokens of the texts read so
    far will be predicted, advance of those that were.
    """
    length = length or engine.max_length
    prefix = _prefix(tokenizer)
    left = math.inf if most is None else most
    total = 0
    for block in _blocks(tokenizer, texts):
        kept: list[tuple[str, list[int]]] = []
        for text, ids in block:
            if left <= 0:
                break
            if truncate and len(ids) >= length:
                ids = ids[: length - 1]
                text = _beginning(tokenizer, text, len(ids))
            left -= len(ids)
            kept.append((text, ids))
        total += sum(len(ids) for _, ids in kept)
        planned(total)
        losses = _losses(engine, [[prefix, *ids] for _, ids in kept], length, journal, advance)
        for (text, ids), loss in zip(kept, losses, strict=True):
            yield Document(text, len(ids), loss)
        if left <= 0:
            return


def _losses(
    engine: Engine,
    sequences: list[list[int]],
    length: int,
    journal: Journal | None,
    advance: Callable[[int], object],
) -> list[float]:
    """The summed loss of every id but the first of each sequence."""
    keys = []
    if journal:
        about = {"windows": length}
        keys = [prompt_key(np.array(ids, np.int32), about) for ids in sequences]
    known = journal.lookup(keys) if journal else {}
    advance(sum(len(sequences[index]) - 1 for index in known))
    requests: list[Request] = []
    owners: list[int] = []
    for index, ids in enumerate(sequences):
        if index not in known:
            parts = windows(ids, length)
            requests += parts
            owners += [index] * len(parts)
    left = collections.Counter(owners)
    losses = [float(known.get(index, 0.0)) for index in range(len(sequences))]
    for score in engine.scores(engine.plan(requests)):
        index = owners[score.request]
        losses[index] -= float(score.logprobs.sum(dtype=np.float64))
        advance(len(score.logprobs))
        left[index] -= 1
        if journal and not left[index]:
            journal.add(keys[index], losses[index])
    return losses


def summary(
    engine: Engine,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    length: int | None = None,
    truncate: bool = False,
) -> dict[str, Any]:
    """Loss and perplexity over documents, by token and by byte, with the convention. Bytes are
    those of the predicted text in UTF-8.

    length, truncate: as the documents were read. Raises UserError where nothing was predicted.
    """
    length = length or engine.max_length
    rows = [(document.loss, document.tokens, len(document.text.encode())) for document in documents]
    loss_D, tokens_D, bytes_D = np.array(rows, np.float64).reshape(-1, 3).T
    count, size = int(tokens_D.sum()), int(bytes_D.sum())
    if not count:
        raise UserError("the data has no text with a token to predict")
    loss = float(loss_D.sum()) / count
    bits = float(loss_D.sum()) / math.log(2) / size
    begin = "BOS" if tokenizer.bos_id is not None else "EOS"
    taken = (
        f"its first {length} ids, {begin} included"
        if truncate
        else f"whole, in windows of {length} ids; a window's first id sees one id of "
        "the window before, the last window is full"
    )
    return {
        "nats_per_token": loss,
        "nats_per_token_stderr": ratio_stderr(loss_D, tokens_D),
        "perplexity": _exp(loss),
        "bits_per_byte": bits,
        "byte_perplexity": _exp(bits * math.log(2)),
        "loss_over_log_vocabulary": loss / math.log(engine.config.vocab_size),
        "tokens": count,
        "bytes": size,
        "documents": len(rows),
        "context_length": length,
        "dtype": engine.compute.dtype,
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "convention": (
            f"each document on its own behind one {begin} token ({_prefix(tokenizer)}), which is "
            f"not predicted; {taken}; natural logarithm; mean over all predicted tokens of all "
            "documents; bytes are those of the predicted text in UTF-8"
        ),
    }


def ratio_stderr(sum_D: np.ndarray, size_D: np.ndarray) -> float | None:
    """Standard error of sum(sum_D) / sum(size_D) over documents D drawn as wholes (linearised);
    None for a single document."""
    count = len(sum_D)
    if count < 2:
        return None
    residual_D = sum_D - size_D * (sum_D.sum() / size_D.sum())
    return float(np.sqrt(count / (count - 1) * (residual_D**2).sum()) / size_D.sum())


def _prefix(tokenizer: Tokenizer) -> int:
    """The token that stands before every document."""
    prefix = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if prefix is None:
        raise UserError(
            f"{tokenizer.name}: the tokenizer has neither a BOS nor an EOS token to begin with"
        )
    return prefix


def windows(ids: Sequence[int], length: int) -> list[Request]:
    """(context, continuation) pairs of at most length + 1 ids that predict each id but the first
    once. As lm-evaluation-harness cuts text for loglikelihood_rolling."""
    requests: list[Request] = []
    done = 1
    while done < len(ids):
        stop = min(done + length, len(ids))
        start = max(0, stop - length - 1)
        requests.append((ids[start:done], ids[done:stop]))
        done = stop
    return requests


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
