"""Which layers stay, by measurement: keep lists from an analysis's numbers. No jax.

An analysis is the JSON object that `chopjax analyze` writes as DIR/analysis.json; its `measures`
are lists, one number a layer, where nothing else is said.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax.checkpoint.identity import differences
from chopjax.disk.files import read_json_object
from chopjax.errors import UserError
from chopjax.keep import Keep
from chopjax.progress import say

ANALYSIS = "analysis.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Protect:
    """Layers that no measured strategy removes. The first and the last touch embeddings and head;
    Shortened LLaMA's "+" protects the first 4 and the last 2."""

    first: int = 1
    last: int = 1

    def layers(self, num_layers: int) -> frozenset[int]:
        return frozenset(range(min(self.first, num_layers))) | frozenset(
            range(max(num_layers - self.last, 0), num_layers)
        )

    def most(self, num_layers: int) -> int:
        """How many layers may go: those that are not protected, and one stays always."""
        return min(num_layers - len(self.layers(num_layers)), num_layers - 1)


DEFAULT_PROTECT = Protect()


@dataclasses.dataclass(frozen=True)
class Strategy:
    """measure: what it needs of an analysis. order: the layers that go, for a number of them."""

    measure: str
    removed: Callable[[Any, int, int, Protect], Sequence[int]]


def most_similar_block(
    distance_LL: Sequence[Sequence[float | None]], num_layers: int, remove: int, protect: Protect
) -> Sequence[int]:
    """ℓ* .. ℓ*+n-1 with ℓ* = argmin over ℓ of d(ℓ, n) (Deeper Layers, arXiv 2403.17887, §4.1)."""
    starts = range(protect.first, num_layers - protect.last - remove + 1)
    start = min(starts, key=lambda layer: _number(distance_LL[layer][remove - 1]))
    return range(start, start + remove)


def lowest(
    score_L: Sequence[float], num_layers: int, remove: int, protect: Protect
) -> Sequence[int]:
    """The layers with the lowest scores; of equal ones the deeper goes first."""
    if len(score_L) != num_layers:
        raise ValueError(f"{len(score_L)} numbers for {num_layers} layers")
    protected = protect.layers(num_layers)
    layers = [layer for layer in reversed(range(num_layers)) if layer not in protected]
    return sorted(layers, key=lambda layer: _number(score_L[layer]))[:remove]


def greedy(
    removals: Sequence[Mapping[str, Any]], num_layers: int, remove: int, protect: Protect
) -> Sequence[int]:
    """The first rounds of SLEB's search, which protected what it was told to when it ran."""
    if len(removals) < remove:
        raise UserError(
            f"the analysis holds {len(removals)} rounds of SLEB's search and {remove} layers are "
            "to go; run `chopjax analyze`, which searches until none but protected layers are left"
        )
    return [removal["layer"] for removal in removals[:remove]]


MEASURED: dict[str, Strategy] = {
    "similarity": Strategy("distance", most_similar_block),
    "block-influence": Strategy("influence", lowest),
    "magnitude": Strategy("magnitude", lowest),
    "taylor": Strategy("taylor", lowest),
    "perplexity": Strategy("one_out_loss", lowest),
    "sleb": Strategy("sleb", greedy),
}


def choose_measured(
    strategy: str, analysis: Mapping[str, Any], remove: int, protect: Protect = DEFAULT_PROTECT
) -> Keep:
    """The keep list that removes `remove` layers. Raises UserError where the analysis lacks the
    measure or too few layers are unprotected."""
    num_layers = analysis["num_layers"]
    chosen = MEASURED[strategy]
    if chosen.measure not in analysis["measures"]:
        raise UserError(
            f"the analysis does not hold {chosen.measure!r}, which strategy {strategy!r} needs; "
            f"it holds {', '.join(analysis['measures'])}"
        )
    check_count(strategy, num_layers, remove, protect)
    measure = analysis["measures"][chosen.measure]
    try:
        gone = set(chosen.removed(measure, num_layers, remove, protect))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"the analysis's {chosen.measure!r} is damaged ({error!r}); run `chopjax analyze` again"
        ) from None
    if len(gone) != remove or not gone <= set(range(num_layers)):
        raise UserError(
            f"the analysis's {chosen.measure!r} is damaged: it does not name {remove} of "
            f"{num_layers} layers; run `chopjax analyze` again"
        )
    if gone & protect.layers(num_layers):
        raise UserError(
            f"the analysis's {strategy} removes layers that are to be protected now; run "
            "`chopjax analyze` again with this --protect"
        )
    return tuple(layer for layer in range(num_layers) if layer not in gone)


def check_count(strategy: str, num_layers: int, remove: int, protect: Protect) -> None:
    """Raises UserError where fewer layers than are to go are unprotected."""
    most = protect.most(num_layers)
    if not 1 <= remove <= most:
        raise UserError(
            f"strategy {strategy!r} can remove 1 to {most} of {num_layers} layers, not {remove}: "
            f"the first {protect.first} and the last {protect.last} are protected (--protect, or "
            "`protect` in a recipe)"
        )


def summary(analysis: Mapping[str, Any], protect: Protect) -> dict[str, Any]:
    """What chopjax.json keeps of an analysis that chose the layers."""
    measured = {key: analysis.get(key) for key in ("model", "revision", "data", "tokens")}
    return {
        "protect": dataclasses.asdict(protect),
        "analysis": measured | {"settings": analysis.get("settings")},
    }


def parse_protect(text: str) -> Protect:
    """ "1,1": layers next to the embeddings and next to the head."""
    parts = text.split(",")
    if len(parts) != 2 or not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts):
        raise UserError(f"--protect {text!r}: two counts are needed, first and last, such as 1,1")
    return Protect(int(parts[0]), int(parts[1]))


def read_analysis(
    folder: Path, num_layers: int, num_parameters: int, model: Mapping[str, Any]
) -> dict[str, Any]:
    """The analysis of a model. Raises UserError where there is none, or that of another one.

    model: its fingerprint (checkpoint/identity.py). Analyses of an earlier chopjax have none, and
    the size alone is compared.
    """
    path = folder / ANALYSIS if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{folder}: no {ANALYSIS} there; `chopjax analyze` writes it")
    analysis = read_json_object(path)
    sound = (
        analysis.get("format") == FORMAT
        and isinstance(analysis.get("measures"), dict)
        and type(analysis.get("num_layers")) is int
        and type(analysis.get("num_parameters")) is int
    )
    if not sound:
        raise UserError(f"{path}: not an analysis that this chopjax wrote; run `analyze` again")
    size = (analysis["num_layers"], analysis.get("num_parameters"))
    if size != (num_layers, num_parameters):
        raise UserError(
            f"{path}: an analysis of {analysis.get('model')}, {size[0]} layers and {size[1]:,} "
            f"parameters; the model has {num_layers} and {num_parameters:,}"
        )
    seen = analysis.get("fingerprint")
    if not isinstance(seen, dict):
        say(
            f"note: {path} does not say which model it looked at, as a later `chopjax analyze` "
            f"does; take care that it was this one, and not another of its size"
        )
    elif changed := differences(seen, model):
        raise UserError(
            f"{path}: an analysis of another model, {analysis.get('model')}: "
            f"{' and '.join(changed)} differ. Run `chopjax analyze` on this one"
        )
    return analysis


def _number(value: float | None) -> float:
    """What was not a number when measured is never the lowest."""
    return math.inf if value is None or math.isnan(value) else value
