"""Text to token ids as lm-evaluation-harness's `hf` backend makes them, many texts at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from chopjax.data.tokenizer import whole_text_backend
from chopjax.errors import UserError

Ids = np.ndarray  # int32
BATCH = 1024  # texts at a time: their ids are Python integers before they are an array


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A tokenizer of transformers, and what the harness decides about its special tokens.

    add_bos_token: whether special tokens stand around a text; None leaves it to the tokenizer.
    prefix_id: what an empty context is; a text that begins with its spelling gets no other.
    """

    tokenizer: Any
    add_bos_token: bool | None
    prefix_id: int

    def encode(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[Ids]:
        """Ids of each text. add_special_tokens: None decides text by text, as the harness does."""
        if add_special_tokens is not None:
            return self._encode(texts, add_special_tokens)
        usual = True if self.add_bos_token is None else self.add_bos_token
        prefix = self.tokenizer.decode(self.prefix_id)
        bare = [i for i, text in enumerate(texts) if text.startswith(prefix)]
        if not bare or not usual:
            return self._encode(texts, usual)
        all_ids = self._encode(texts, True)
        for index, ids in zip(bare, self._encode([texts[i] for i in bare], False), strict=True):
            all_ids[index] = ids
        return all_ids

    def _encode(self, texts: Sequence[str], special: bool) -> list[Ids]:
        backend = whole_text_backend(self.tokenizer)
        all_ids = []
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            encoded = backend.encode_batch_fast(part, add_special_tokens=special)
            all_ids += [np.array(encoding.ids, np.int32) for encoding in encoded]
        return all_ids

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """(context, continuation) → (context ids, continuation ids).

        Trailing spaces of the context go to the continuation. The continuation's ids are those of
        both encoded as one text, from the number of ids that the context alone has; the context's
        are those that it has alone. Where a token reaches over the joint the two together are not
        the ids of the text, as in the harness. An empty context is the prefix token. Either part
        may come out empty: see `check_pairs`.
        """
        cut = [len(context.rstrip()) for context, _ in texts]
        contexts = list(dict.fromkeys(c[:at] for (c, _), at in zip(texts, cut, strict=True) if c))
        joint = [context + continuation for context, continuation in texts if context]
        alone = [continuation for context, continuation in texts if not context]
        ids_of = dict(zip(contexts, self.encode(contexts), strict=True))
        joint_ids, alone_ids = iter(self.encode(joint)), iter(self.encode(alone, False))
        prefix = np.array([self.prefix_id], np.int32)
        encoded = []
        for (context, _), at in zip(texts, cut, strict=True):
            if context:
                own = ids_of[context[:at]]
                encoded.append((own, next(joint_ids)[len(own) :]))
                continue
            ids = next(alone_ids)
            if len(ids) and ids[0] == self.prefix_id:
                encoded.append((ids[:1], ids[1:]))
            else:
                encoded.append((prefix, ids))
        return encoded


def check_pairs(
    pairs: Sequence[tuple[Ids, Ids]], names: Sequence[str], max_length: int
) -> list[int]:
    """Requests that are too long for the context length and will lose tokens on the left.

    Raises UserError for a request without a context or continuation token, and for a continuation
    that is longer than the context length: the hf backend stops with an AssertionError there.
    names: what to call each request.
    """
    for (context, continuation), name in zip(pairs, names, strict=True):
        if not len(continuation):
            raise UserError(
                f"{name}: the continuation adds no token to the context's {len(context)}, because "
                "this tokenizer's tokens reach over the joint; lm-eval's hf backend stops here, "
                "too. Leave the item out, or score another task"
            )
        if not len(context):
            raise UserError(f"{name}: the context has no tokens")
        if len(continuation) > max_length:
            raise UserError(
                f"{name}: the continuation has {len(continuation)} tokens, more than the context "
                f"length {max_length}"
            )
    return [i for i, (c, k) in enumerate(pairs) if len(c) + len(k) > max_length + 1]
