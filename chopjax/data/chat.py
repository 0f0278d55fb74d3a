"""Conversations → token ids, and which of them carry loss: what the assistant wrote, its
end-of-turn token included, and nothing else.

A template that marks answers itself ({% generation %}) is believed. Of any other, the text up to an
answer is what it writes for the messages before, with the words that open an answer
(add_generation_prompt); the answer is what it writes beyond that once the answer is among them. So
loss is on what the model must write itself after the prompt that it will be given. Blanks behind an
end-of-turn token, which are written for the model, are no part of it.

A template may rewrite earlier turns (Qwen3 drops their thoughts). Then one text cannot hold all
answers as they were given, and a conversation becomes several documents, each as far as the turn at
which the text before it stopped being a beginning of the next.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from chopjax.data.chat_template import DATE, ChatTemplate, Span, choose_template
from chopjax.data.messages import ASSISTANT, Message, of_text, says_something
from chopjax.data.tokenizer import Tokenizer, build, tokenizer_folder
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.progress import say

MARKED = "{% generation %} … {% endgeneration %}"


class Rendered(NamedTuple):
    """A document, and where in it the assistant speaks, ascending."""

    text: str
    spans: list[Span]


class Encoded(NamedTuple):
    """A document. carries: of each id, whether it carries loss; None where all do."""

    text: str
    ids: list[int]
    carries: list[bool] | None


@dataclasses.dataclass(frozen=True)
class ChatEncoder:
    """Conversations (messages.as_text) to ids. Can be sent to other processes."""

    template: ChatTemplate
    backend: Backend
    ends: tuple[str, ...]  # spellings of the special tokens, one of which may end a turn

    @property
    def fingerprint(self) -> str:
        """sha256 over what decides texts and weights beside the tokenizer."""
        template = self.template
        return hashlib.sha256(
            json.dumps([template.text, sorted(template.special_tokens.items())]).encode()
        ).hexdigest()

    def encode_batch(self, documents: Sequence[str]) -> list[list[Encoded]]:
        """Of each conversation its documents: none where the assistant says nothing. Ids are those
        of transformers' apply_chat_template. Raises UserError where the template fails."""
        rendered = [self.rendered(document) for document in documents]
        texts = [part.text for parts in rendered for part in parts]
        encodings = iter(self.backend.encode_batch(texts, add_special_tokens=False))
        return [[_encoded(part, next(encodings)) for part in parts] for parts in rendered]

    def rendered(self, document: str) -> list[Rendered]:
        """The texts of a conversation, cut behind the last answer."""
        messages = of_text(document)
        answers = [
            index
            for index, message in enumerate(messages)
            if index and message["role"] == ASSISTANT and says_something(message)
        ]
        if not answers:
            return []
        try:
            if self.template.marks_answers:
                return self._marked(messages[: answers[-1] + 1])
            return self._compared(messages, answers)
        except jinja2.exceptions.TemplateError as error:
            raise UserError(f"{self.template.failure(error)}, {_named(document)}") from error
        except _Unclear:
            raise UserError(
                f"{self.template.model}: its chat template does not show what the assistant says: "
                "the text with an answer does not begin with the text that asks for it, "
                f"{_named(document)}. Mark answers in the template with {MARKED}, and name the "
                "file with --chat-template"
            ) from None

    def _marked(self, messages: list[Message]) -> list[Rendered]:
        text, spans = self.template.render_marked(messages)
        spans = [(start, stop) for start, stop in spans if start < stop]
        return [Rendered(text, spans)] if spans else []

    def _compared(self, messages: list[Message], answers: list[int]) -> list[Rendered]:
        documents: list[Rendered] = []
        for index in answers:
            asked = self.template.render(messages[:index], opens_answer=True)
            answered = self.template.render(messages[: index + 1])
            span = len(asked), self._end(answered, len(asked))
            if not answered.startswith(asked) or span[0] >= span[1]:
                raise _Unclear
            before = documents[-1] if documents else Rendered("", [])
            if documents and asked.startswith(before.text):
                documents[-1] = Rendered(answered, [*before.spans, span])
            else:
                documents.append(Rendered(answered, [span]))
        return documents

    def _end(self, text: str, start: int) -> int:
        """Where an answer at the end of a text ends."""
        stripped = text.rstrip()
        return len(stripped) if stripped.endswith(self.ends, start) else len(text)


class _Unclear(Exception):
    pass


def load_chat(
    model: str | os.PathLike[str],
    tokenizer: Tokenizer,
    revision: str | None = None,
    file: str | os.PathLike[str] | None = None,
) -> ChatEncoder:
    """The encoder of a model's conversations, with its own chat template or that of a file.

    model, revision: where the tokenizer is from (load_tokenizer). Raises UserError where there is
    no template.
    """
    name, folder = tokenizer_folder(model, revision)
    built = build(folder, name)
    if file is None:
        text = choose_template(built, True, name, "--chat")
        assert text is not None
    else:
        text, name = _read(expanded(file)), os.fspath(file)
    template = ChatTemplate(name, text, built.special_tokens_map)
    if template.writes_the_date:
        say(f"{name}: its chat template writes today's date; it is told {DATE}, every day")
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.encode_special_tokens = tokenizer.split_special_tokens
    backend.post_processor = None  # it has no say in ids, but some cut blanks from where tokens lie
    added = backend.get_added_tokens_decoder().values()
    ends = tuple(token.content for token in added if token.special)
    return ChatEncoder(template.on(DATE), backend, ends)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"--chat-template {path}: cannot be read ({reason})") from error


def _named(document: str) -> str:
    """For a message: which conversation."""
    return f"in the conversation {document[:200]}{'…' * (len(document) > 200)}"


def _encoded(part: Rendered, encoding: Encoding) -> Encoded:
    return Encoded(part.text, encoding.ids, carriers(encoding.offsets, part.spans))


def carriers(offsets: Sequence[Span], spans: Iterable[Span]) -> list[bool]:
    """Of each token, whether it holds a character of a span. Both are ascending."""
    starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
    carries = [False] * len(offsets)
    for start, stop in spans:
        first, last = bisect.bisect_right(stops, start), bisect.bisect_left(starts, stop)
        carries[first:last] = [True] * (last - first)
    return carries
