"""Prompts: a text, a conversation or token ids each, and the ids that the model reads."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chopjax.checkpoint.describe import Description
from chopjax.data import messages
from chopjax.data.chat_template import choose_template
from chopjax.data.reader import BadExample, plain
from chopjax.data.sources import find_sources, read_documents
from chopjax.errors import UserError
from chopjax.score.chat import Template
from chopjax.score.encoding import Encoder

KINDS = ("prompt", "messages", "tokens")
USER = "user"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """kind: one of KINDS. said: a text, a list of messages, or a list of ids."""

    kind: str
    said: Any

    @property
    def talk(self) -> list[messages.Message]:
        """As a conversation; not of ids."""
        said: list[messages.Message] = self.said
        return [{"role": USER, "content": self.said}] if self.kind == "prompt" else said

    def with_answer(self, answer: str) -> dict[str, Any]:
        """A conversation as `chopjax prepare` takes it."""
        return {"messages": [*self.talk, {"role": messages.ASSISTANT, "content": answer}]}


def read_prompts(inputs: Sequence[str]) -> list[Prompt]:
    """The prompts of everything that `chopjax prepare` reads; an example has one field of KINDS.
    Raises UserError, with file and line, where it has none or another type in it."""
    documents = read_documents(find_sources(inputs, "prompt", read=document), lambda read: None)
    found = [Prompt(*json.loads(text)) for text in documents]
    if not found:
        raise UserError(f"{', '.join(inputs)}: no prompt in it")
    return found


def document(example: Mapping[str, Any], field: str) -> str:
    """An example as a source holds it → "[kind, said]". Raises BadExample."""
    kinds = [kind for kind in KINDS if kind in example]
    if len(kinds) != 1:
        there = " and ".join(kinds) or ", ".join(reprlib.repr(key)[1:-1] for key in example)
        raise BadExample(
            f"one of the fields {', '.join(KINDS)} is needed (here: {there or 'none'})"
        )
    (kind,) = kinds
    said = plain(example[kind])
    if kind == "messages":
        said = json.loads(messages.as_text(said))
    if kind == "prompt" and not isinstance(said, str):
        raise BadExample(f"field 'prompt' is {reprlib.repr(said)}, no text")
    if kind == "tokens":
        ids = said if isinstance(said, list) else []
        if not ids or not all(type(token) is int and 0 <= token < 1 << 31 for token in ids):
            raise BadExample(f"field 'tokens' is {reprlib.repr(said)}, no list of token ids")
    # As they are, for the source to look for what is no character.
    return json.dumps([kind, said], ensure_ascii=False)


def encode_for(
    model: Description, tokenizer: Any, prompts: Sequence[Prompt], chat: bool
) -> list[np.ndarray]:
    """The ids of each as a model reads them. tokenizer: of transformers, the model's. Raises
    UserError where it has no chat template for a conversation."""
    begins = tokenizer.bos_token_id
    begins = tokenizer.eos_token_id if begins is None else begins
    if begins is None:
        raise UserError(f"{model.name}: the tokenizer has neither a BOS nor an EOS token")
    chosen = None
    if chat or any(prompt.kind == "messages" for prompt in prompts):
        chosen = choose_template(tokenizer, True, model.name, "--chat")
    template = Template(tokenizer, model.name, chosen)
    return encode(prompts, Encoder(tokenizer, None, begins), template, chat)


def encode(
    prompts: Sequence[Prompt], encoder: Encoder, template: Template, chat: bool
) -> list[np.ndarray]:
    """The ids of each. chat: texts are what a user says, and go through the template, as messages
    always do. A text without tokens is what the model begins a text with."""
    texts: list[tuple[int, str, bool | None]] = []
    ids: list[np.ndarray] = [np.empty(0, np.int32)] * len(prompts)
    for number, prompt in enumerate(prompts):
        if prompt.kind == "tokens":
            ids[number] = np.array(prompt.said, np.int32)
        elif prompt.kind == "messages" or chat:
            texts.append((number, template.apply(prompt.talk, opens_answer=True), False))
        else:
            texts.append((number, prompt.said, None))
    for special in (False, None):
        group = [(number, text) for number, text, how in texts if how is special]
        found = encoder.encode([text for _, text in group], special)
        for (number, _), one in zip(group, found, strict=True):
            ids[number] = one if len(one) else np.array([encoder.prefix_id], np.int32)
    return ids


def check_room(ids: Sequence[np.ndarray], most: int, max_length: int) -> None:
    """Raises UserError for the first prompt behind which `most` tokens have no room."""
    for number, one in enumerate(ids, 1):
        if (over := len(one) + most - max_length) > 0:
            raise UserError(
                f"prompt {number}: {len(one)} tokens and --max-new-tokens {most} are {over} more "
                f"than the context length {max_length}; shorten one of them"
            )
