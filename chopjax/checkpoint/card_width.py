"""What a model card says of narrower layers, from chopjax.json's history (provenance.py). No jax.

    {"step": "width", "method": "activation" or "gradient",
     "units": {"mlp": {"before": …, "after": …, "stayed": ["c3f0…", …]},
               "heads": {"before": …, "after": …, "stayed": […], "queries": …}},
     "parameters": {"before": …, "after": …},
     "text": […], …, "loss": {…}, …}         as card_sparsity.py has them

units: of a layer, hidden units of the feed-forward (mlp), and key/value heads with the `queries`
query heads of each, or query heads alone where all share one key and value (heads); dimensions of
the residual stream (embed). stayed: for each layer the units that stayed, a bit each in
hexadecimal, the first unit highest; of embed one for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint.card_sparsity import loss_facts

NOTE = (
    "Nothing but weights, the number of layers and the widths in config.json differs from the "
    "parent: whatever runs the parent, and reads all of these widths, runs this."
)


def name_of(kind: str, about: Mapping[str, Any]) -> str:
    """What these units are."""
    if kind != "heads":
        return {"mlp": "hidden units", "embed": "dimensions"}.get(kind, kind)
    queries = about.get("queries")
    return "heads" if queries in (None, 1) else f"groups of {queries} query heads"


def facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the card's table, of a record that may be anybody's."""
    units = entry.get("units")
    parts = [
        f"{about.get('after')} of {about.get('before')} {name_of(kind, about)}"
        for kind, about in (units.items() if isinstance(units, dict) else ())
        if isinstance(about, dict)
    ]
    what = f"by {entry.get('method')}: {' and '.join(parts)} of every layer stayed"
    return [("width", what), *loss_facts("width", entry)]
