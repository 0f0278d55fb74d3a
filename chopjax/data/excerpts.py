"""A few sequences out of a text: what layers are measured on (calibration text)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from chopjax.data.sources import find_sources, read_documents
from chopjax.data.tokenizer import Tokenizer
from chopjax.errors import UserError
from chopjax.progress import say

POOL = 16  # documents looked at for each one that is drawn
BATCH = 256  # documents tokenised at a time


def excerpts(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    count: int,
    length: int,
    seed: int,
    field: str = "text",
    quiet: bool = False,
) -> list[list[int]]:
    """Token ids of `count` excerpts of at most `length` ids, the tokenizer's BOS in front included;
    of fewer where the text holds no more.

    An excerpt is the beginning of a document, drawn at random among the first POOL·count of them.
    Where there are fewer documents than excerpts, further pieces of the same documents follow.
    quiet: say nothing where there are fewer excerpts than asked for.
    Raises UserError where there is no text.
    """
    texts = list(itertools.islice(read_documents(find_sources(inputs, field)), POOL * count))
    random.Random(seed).shuffle(texts)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    size = length - len(bos)
    sequences: list[list[int]] = []
    rest: list[list[int]] = []
    for start in range(0, len(texts), BATCH):
        for ids in tokenizer.encode_batch(texts[start : start + BATCH]):
            cuts = [bos + ids[i : i + size] for i in range(0, len(ids), size)]
            cuts = [cut for cut in cuts if len(cut) >= 2]
            sequences += cuts[:1]
            rest += cuts[1:]
        if len(sequences) >= count:
            return sequences[:count]
    random.Random(seed).shuffle(rest)
    sequences += rest[: count - len(sequences)]
    if not sequences:
        raise UserError(f"{', '.join(inputs)}: no text of at least two tokens there")
    if len(sequences) < count and not quiet:
        say(
            f"{', '.join(inputs)} gives {len(sequences)} sequences of up to {length} tokens, "
            "no more"
        )
    return sequences


def others(
    taken: Sequence[Sequence[int]],
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    count: int,
    length: int,
    seed: int,
    field: str = "text",
) -> list[list[int]]:
    """At most `count` excerpts of the same text that are none of those in `taken`, which the same
    length and seed gave: what was not looked at, to measure on. None where the text has no more."""
    known = {tuple(ids) for ids in taken}
    drawn = excerpts(inputs, tokenizer, len(taken) + count, length, seed, field, quiet=True)
    return [ids for ids in drawn if tuple(ids) not in known][:count]
