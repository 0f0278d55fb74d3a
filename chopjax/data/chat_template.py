"""A tokenizer's chat template: a conversation as one text. No jax."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from chopjax.data.messages import Message
from chopjax.errors import UserError, first_line

# What a template that writes today's date is told, so that a text is the same every day; Llama 3's
# templates fall back on it.
DATE = datetime.date(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]  # of characters


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Can be sent to other processes; needs no tokenizer."""

    model: str  # whose it is, for messages
    text: str
    special_tokens: dict[str, str]  # bos_token and the like, which templates write

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself, by {% generation %}, which parts the assistant wrote."""
        return bool(_GENERATION.search(self.text))

    @property
    def writes_the_date(self) -> bool:
        return bool(_TODAY.search(self.text))

    def on(self, date: datetime.date) -> ChatTemplate:
        """The same, which writes this date in place of today's."""

        def written(call: re.Match[str]) -> str:
            return json.dumps(date.strftime(call[2]), ensure_ascii=False)

        return dataclasses.replace(self, text=_TODAY.sub(written, self.text))

    def render(
        self, messages: Sequence[Message], opens_answer: bool = False, continues: bool = False
    ) -> str:
        """opens_answer: the text ends where the answer begins. continues: it ends in the last
        message, to be gone on with.

        Raises jinja2's TemplateError where the template refuses the messages, UserError for
        whatever else a stranger's template does.
        """
        return self._render(messages, opens_answer, continues, marks=False)[0]

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text, and what in it stands in {% generation %}. Raises as `render`."""
        text, spans = self._render(messages, opens_answer=False, continues=False, marks=True)
        return text, spans[0]

    def _render(
        self, messages: Sequence[Message], opens_answer: bool, continues: bool, marks: bool
    ) -> tuple[str, list[list[Span]]]:
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        try:
            texts, spans = render(
                conversations=[list(messages)],
                chat_template=self.text,
                add_generation_prompt=opens_answer,
                continue_final_message=continues,
                return_assistant_tokens_mask=marks,
                **self.special_tokens,
            )
            return texts[0], spans
        except jinja2.exceptions.TemplateError:
            raise
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> UserError:
        return UserError(f"{self.model}: its chat template fails: {first_line(error)[:300]}")


def choose_template(tokenizer: Any, wanted: bool | str, model: str, flag: str) -> str | None:
    """The text of one of a tokenizer's chat templates; None where none is wanted.

    tokenizer: of transformers. wanted: a name takes one of several. flag: that says so. Raises
    UserError where there is none.
    """
    if not wanted:
        return None
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise UserError(
            f"{model}: its tokenizer has no chat template (chat_template.jinja, or chat_template "
            f"in tokenizer_config.json); leave {flag} out"
        )
    if isinstance(templates, str):
        if isinstance(wanted, str):
            raise UserError(
                f"{flag} {wanted}: {model} has one chat template, without a name; "
                f"say {flag} alone, as the last flag or before another"
            )
        return templates
    name = wanted if isinstance(wanted, str) else "default"
    if name not in templates:
        raise UserError(
            f"{flag}: {model} has no chat template named {name}; name one of "
            f"{', '.join(sorted(templates))}"
        )
    template: str = templates[name]
    return template
