"""What the model card (checkpoint/card.py) of a pipeline says was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.report.comparison import Column, markdown_table, verdict

MEASURED = """\
## Measured

{table}

{gap}

Document loss, perplexity and bits per byte are over {tokens:,} tokens of {held_out} by this model's
own tokenizer: {document_loss}.
Window loss is healing's own measure of the same text: {window_loss}.
{accuracy}{texts}
Latency is the median of a forward pass over {batch} x {length} tokens on {device}."""


def measured(columns: Sequence[Column], about: Mapping[str, Any]) -> str:
    """Markdown.

    columns: parent, chopped, healed. about: held_out, tokens, document_loss and window_loss (their
    conventions), batch, length, device.
    """
    conventions: dict[str, list[str]] = {}
    for name, figures in columns[0].texts.items():
        conventions.setdefault(figures["convention"], []).append(name)
    return MEASURED.format(
        table=markdown_table(columns),
        gap=verdict(columns),
        accuracy="Accuracies are by lm-evaluation-harness's definitions, ± one standard error.\n"
        if any(column.accuracies for column in columns)
        else "",
        texts="".join(
            f"Perplexity of {', '.join(names)}: "
            f"{'as above' if said == about['document_loss'] else said}.\n"
            for said, names in conventions.items()
        ),
        **about,
    )
