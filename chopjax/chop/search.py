"""Layers judged by the loss without them: one left out (Shortened LLaMA's PPL), and the greedy
search of SLEB."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from chopjax.chop.prefixes import Prefixes
from chopjax.keep import Keep

# Of hidden states that a search may hold to save layers in later rounds.
STATE_BYTES = 1 << 30


def one_out(
    prefixes: Prefixes, done: Callable[[int], None] = lambda count: None
) -> tuple[float, ...]:
    """Mean loss in nats per token with layer 0, 1, … left out (arXiv 2402.02834, section 3.1; its
    perplexity is the exponential). Costs the layers of half as many forward passes."""
    layers = range(prefixes.num_layers)
    keeps = [tuple(k for k in layers if k != layer) for layer in layers]
    losses = prefixes.losses(keeps, done=done)
    return tuple(losses[keep] for keep in keeps)


@dataclasses.dataclass(frozen=True)
class Removal:
    """One round of the greedy search."""

    layer: int
    loss: float  # nats per token without it and all removed before
    candidates: Mapping[int, float]  # layer → the loss if it had gone in this round

    def as_json(self) -> dict[str, Any]:
        """As analysis.json has it."""
        candidates = {str(layer): float(loss) for layer, loss in self.candidates.items()}
        return {"layer": self.layer, "loss": float(self.loss), "candidates": candidates}


def from_json(round: Mapping[str, Any]) -> Removal:
    """What Removal.as_json made."""
    candidates = {int(layer): loss for layer, loss in round["candidates"].items()}
    return Removal(round["layer"], round["loss"], candidates)


def sleb(
    prefixes: Prefixes,
    remove: int,
    protected: Collection[int],
    state_bytes: int = STATE_BYTES,
    done: Callable[[int], None] = lambda count: None,
    begun: Sequence[Removal] = (),
    record: Callable[[Sequence[Removal]], None] = lambda removals: None,
) -> tuple[Removal, ...]:
    """Remove layers one by one, each time the one without which the loss is lowest.

    begun: the first rounds, where they are known. record: called with all rounds after each.

    SLEB (arXiv 2402.09025, algorithm 1). The result is that of the plain loop; it costs less since
    a round starts each candidate from the deepest state that is known. When layer p goes, candidate
    c < p of the next round begins where c of this round stood before p: for the layers most likely
    to go (those that the last round found least missed), these states are remembered within
    `state_bytes`.
    """
    removals = list(begun)
    gone = {removal.layer for removal in begun}
    keep: Keep = tuple(layer for layer in range(prefixes.num_layers) if layer not in gone)
    # Nothing is known in the first round: the deeper a layer, the more its states would save.
    likely = [layer for layer in reversed(keep) if layer not in protected]
    if removals:
        likely = _least_missed(removals[-1].candidates)[1:]
    while len(removals) < remove:
        candidates = [layer for layer in keep if layer not in protected]
        room = state_bytes // prefixes.state_bytes() - prefixes.remembered()
        worth = functools.partial(_lengths, keep, _affordable(candidates, likely, room))
        lists = {layer: _without(keep, layer) for layer in candidates}
        losses = prefixes.losses(lists.values(), worth, done)
        by_layer = {layer: losses[lists[layer]] for layer in candidates}
        best, *likely = _least_missed(by_layer)
        removals.append(Removal(best, by_layer[best], by_layer))
        record(removals)
        keep = lists[best]
        prefixes.forget([_without(keep, layer) for layer in likely])
    prefixes.forget([])
    return tuple(removals)


def _least_missed(losses: Mapping[int, float]) -> list[int]:
    """Layers by the loss without them; of equal ones the shallowest first."""
    return sorted(losses, key=lambda layer: losses[layer])


def _affordable(candidates: list[int], likely: list[int], room: int) -> list[int]:
    """The likely layers before which the states of all shallower candidates fit into `room`."""
    chosen = []
    for layer in likely:
        room -= sum(candidate < layer for candidate in candidates)
        if room < 0:
            break
        chosen.append(layer)
    return chosen


def _lengths(keep: Keep, before: Collection[int], candidate: Keep) -> list[int]:
    """Of a list one layer shorter than `keep`: how many of its layers stand before each of these,
    where the layer left out stands before it, too."""
    gone = next(layer for layer in keep if layer not in candidate)
    return [sum(k < layer for k in candidate) for layer in before if layer > gone]


def _without(keep: Keep, layer: int) -> Keep:
    return tuple(k for k in keep if k != layer)
