"""Prompts as a conversation: the tokenizer's chat template, and words for the system."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jinja2

from chopjax.errors import UserError, first_line
from chopjax.progress import say

Message = dict[str, str]  # role, content


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


def choose_template(tokenizer: Any, wanted: bool | str, model: str) -> str | None:
    """The text of the template that Chat.template means. Raises UserError where there is none."""
    if not wanted:
        return None
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise UserError(
            f"{model}: its tokenizer has no chat template (chat_template.jinja, or chat_template "
            "in tokenizer_config.json); leave --apply-chat-template out"
        )
    if isinstance(templates, str):
        if isinstance(wanted, str):
            raise UserError(
                f"--apply-chat-template {wanted}: {model} has one chat template, without a name; "
                "say --apply-chat-template alone, as the last flag or before another"
            )
        return templates
    name = wanted if isinstance(wanted, str) else "default"
    if name not in templates:
        raise UserError(
            f"--apply-chat-template: {model} has no chat template named {name}; name one of "
            f"{', '.join(sorted(templates))}"
        )
    template: str = templates[name]
    return template


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
                raise self._fails(error) from error
        if not self._told:
            say(f"note: {self._model}: its chat template takes no system message; it is left out")
            self._told = True
        try:
            return self._apply(others, opens_answer)
        except jinja2.exceptions.TemplateError as error:
            raise self._fails(error) from error

    def _apply(self, messages: Sequence[Message], opens_answer: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._chosen,
                tokenize=False,
                add_generation_prompt=opens_answer,
                continue_final_message=not opens_answer,
            )
            return text
        except jinja2.exceptions.TemplateError:
            raise
        except Exception as error:  # whatever a template of a stranger's does
            raise self._fails(error) from error

    def _fails(self, error: Exception) -> UserError:
        reason = first_line(error)
        return UserError(f"{self._model}: its chat template fails: {reason[:300]}")
