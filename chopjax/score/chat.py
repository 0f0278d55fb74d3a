"""Prompts as a conversation: the tokenizer's chat template, and words for the system."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jinja2

from chopjax.data.chat_template import ChatTemplate
from chopjax.data.messages import Message
from chopjax.errors import UserError, first_line
from chopjax.progress import say


@dataclasses.dataclass(frozen=True)
class Chat:
    """What the harness does around a task's prompts.

    template: whether the tokenizer's chat template is applied; a name takes one of several.
    system_instruction: stands before every prompt. multiturn: examples are turns of their own;
    None: they are where a template is applied.
    """

    template: bool | str = False
    system_instruction: str | None = None
    multiturn: bool | None = None

    def as_flags(self) -> dict[str, Any]:
        """For the harness's evaluate(). Raises UserError for turns without a template."""
        if self.multiturn and not self.template:
            raise UserError(
                "--fewshot-as-multiturn turns examples into turns of a chat and needs "
                "--apply-chat-template"
            )
        multiturn = bool(self.template) if self.multiturn is None else self.multiturn
        return {
            "apply_chat_template": self.template,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": multiturn,
        }


PLAIN = Chat()


class Template:
    """A conversation as one text."""

    def __init__(self, tokenizer: Any, model: str, chosen: str | None = None):
        """chosen: the template's text; by default the tokenizer's own."""
        self._tokenizer, self._model, self._chosen = tokenizer, model, chosen
        self._told = False

    def apply(self, messages: Sequence[Message], opens_answer: bool) -> str:
        """opens_answer: the text ends where the answer begins; otherwise in the last message, to be
        gone on with. Where the template does not know the system's role that message is left out,
        as the hf backend does. Raises UserError where the template fails."""
        try:
            return self._apply(messages, opens_answer)
        except jinja2.exceptions.TemplateError as error:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise self._template.failure(error) from error
        if not self._told:
            say(f"note: {self._model}: its chat template takes no system message; it is left out")
            self._told = True
        try:
            return self._apply(others, opens_answer)
        except jinja2.exceptions.TemplateError as error:
            raise self._template.failure(error) from error

    def _apply(self, messages: Sequence[Message], opens_answer: bool) -> str:
        template = self._template
        return template.render(messages, opens_answer, continues=not opens_answer)

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        try:
            text = self._tokenizer.get_chat_template(self._chosen)
        except ValueError as error:  # there is none
            raise UserError(f"{self._model}: {first_line(error)}") from error
        return ChatTemplate(self._model, text, self._tokenizer.special_tokens_map)
