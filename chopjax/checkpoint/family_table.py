"""The table of model types, of `inspect --families` and README: what can be done with each.

No jax.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.structures import REFUSED, ROWS, WRAPPERS, of_family
from chopjax.errors import UserError
from chopjax.models.families import FAMILIES
from chopjax.models.families.table import Family

CHOP, COMPUTE = "chop", "compute"
# Sizes and names, which every family has: no options.
_SIZES = """\
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
head_dim max_position_embeddings n_embd n_layer n_head n_inner n_positions n_ctx ffn_dim
word_embed_proj_dim num_layers num_heads bos_token_id eos_token_id pad_token_id model_type
layer_types n_layers n_heads d_model max_seq_len num_kv_heads ffn_hidden_size n_embed rope_scaling
"""


def table() -> list[dict[str, Any]]:
    """One row a model_type: depth, options (keys of config.json that choose what is computed; of
    those that chopjax computes with), and how the fields that are about layers follow a chop."""
    names = sorted({*ROWS, *FAMILIES})
    rows = [
        {
            "model_type": name,
            "depth": COMPUTE if name in FAMILIES else CHOP,
            "options": options(FAMILIES[name]) if name in FAMILIES else [],
            "per_layer": [
                field.says()
                for field in (of_family(FAMILIES[name]) if name in FAMILIES else ROWS[name]).fields
            ],
            "inside": None,
        }
        for name in names
    ]
    wrapped = [
        {
            "model_type": name,
            "depth": CHOP,
            "options": [],
            "per_layer": [],
            "inside": ".".join(wrapper.inside),
        }
        for name, wrapper in sorted(WRAPPERS.items())
    ]
    return rows + wrapped


def refused() -> dict[str, str]:
    """model_type → why no layer can be removed from it by moving tensors."""
    return dict(sorted(REFUSED.items()))


class _Asked(Mapping[str, Any]):
    """A config.json that says its model_type alone, and remembers what it was asked for."""

    def __init__(self, model_type: str) -> None:
        self.held = {"model_type": model_type}
        self.keys_asked: dict[str, None] = {}

    def __getitem__(self, key: str) -> Any:
        self.keys_asked[key] = None
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def options(family: Family) -> list[str]:
    """The keys that a family's translation looks at, sizes aside."""
    asked = _Asked(family.model_type)
    with contextlib.suppress(UserError):  # a key that must be given; all are asked for all the same
        family.translate(asked)
    return sorted(set(asked.keys_asked) - set(_SIZES.split()))


def markdown() -> str:
    """The table as README has it."""
    lines = [
        "| `model_type` | depth | options of config.json | fields about single layers |",
        "| --- | --- | --- | --- |",
    ]
    alike: list[str] = []
    for row in table():
        name = f"`{row['model_type']}`"
        if row["inside"] is not None:
            continue
        if row["depth"] == CHOP and not row["per_layer"]:
            alike.append(name)
            continue
        cells = (
            name,
            row["depth"],
            ", ".join(f"`{key}`" for key in row["options"]),
            "; ".join(row["per_layer"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    wrapped = [f"`{row['model_type']}`" for row in table() if row["inside"] is not None]
    lines.append(f"| {', '.join(alike)} | chop | | nothing but the lists that any may have |")
    lines.append(
        f"| {', '.join(wrapped)} | chop | | what their language model's has, under `text_config` |"
    )
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- families: made from the registry -->\n", "<!-- end of families -->"


def with_table(text: str) -> str:
    """A page with the table as it is now between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + markdown() + END + rest.split(END)[1]


if __name__ == "__main__":  # python -m chopjax.checkpoint.family_table README.md
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text()))
