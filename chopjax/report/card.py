"""The model card (README.md) of a chopped and healed checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.chop.configurations import ranges, removed
from chopjax.report.comparison import Column, markdown_table, verdict

CARD = """\
---
library_name: transformers
tags: [chopjax, layer-pruning]
base_model: {parent}
---
# {title}

{parent_name} with {kept} of its {layers} layers{healed}.

| | |
| --- | --- |
| parent | {parent_name}{revision} |
| layers kept | {kept_ranges} (0-based, of {layers}) |
| layers removed | {removed_ranges} |
| strategy | {strategy} |
| healing | {healing} |
| made with | chopjax {version} |

## Measured

{table}

{gap}

Losses are over {tokens:,} tokens of {held_out} by this model's own tokenizer: {convention}.
{accuracy}
Latency is the median of a forward pass over {batch} x {length} tokens on {device}.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

Nothing but the number of layers differs from the parent's architecture, so whatever runs the
parent runs this. `chopjax.json` holds the full record. The parent's licence and its limits apply.
"""


def card(
    folder: Path,
    provenance: Mapping[str, Any],
    columns: Sequence[Column],
    healing: str,
    measured: Mapping[str, Any],
) -> str:
    """Markdown.

    provenance: chopjax.json. columns: parent, chopped, healed. healing: one sentence.
    measured: held_out, tokens, convention, batch, length, device.
    """
    parent, keep = provenance["parent"], tuple(provenance["kept_layers"])
    layers = parent["num_layers"]
    name = Path(parent["name"]).name if Path(parent["name"]).is_dir() else parent["name"]
    return CARD.format(
        parent=name,
        parent_name=name,
        title=f"{name}, {len(keep)} of {layers} layers",
        kept=len(keep),
        layers=layers,
        healed=", healed by continued pretraining" if healing else "",
        revision=f" at {parent['revision']}" if parent.get("revision") else "",
        kept_ranges=ranges(keep),
        removed_ranges=ranges(removed(keep, layers)),
        strategy=provenance["strategy"],
        healing=healing,
        version=__version__,
        table=markdown_table(columns),
        accuracy="Accuracies are by lm-evaluation-harness's definitions, ± one standard error."
        if any(column.accuracies for column in columns)
        else "",
        gap=verdict(columns),
        folder=folder.name,
        **measured,
    )
