"""Which layers stay, by name: arithmetic on integers, with no array in sight.

Layers are numbered from 0. A keep list is a tuple of the layers that stay, ascending, both ends of
every range inclusive. Each strategy is a pure function of the number of layers L and the number
to remove R; at least one layer is removed and at least one stays.

Just CHOP states its five configurations' exact ranges in a figure only; those here satisfy all that
its text says, that the first and the last layer always stay above all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from chopjax.errors import UserError, did_you_mean
from chopjax.keep import Keep


def input_side(num_layers: int, remove: int) -> Keep:
    """Just CHOP's `input` (arXiv 2305.14864): removes 1..R, the layers next to the input.

    Keeps layer 0 and the deepest layers, L-1 among them. Llama-2-7B at half: 0, 17..31.
    """
    _check("input", num_layers, remove, num_layers - 2)
    return (0, *range(remove + 1, num_layers))


def output_side(num_layers: int, remove: int) -> Keep:
    """Just CHOP's `output` (arXiv 2305.14864): removes L-1-R..L-2, next to the output.

    Keeps the first layers and L-1.
    """
    _check("output", num_layers, remove, num_layers - 2)
    return (*range(num_layers - 1 - remove), num_layers - 1)


def middle(num_layers: int, remove: int) -> Keep:
    """Just CHOP's `middle` (arXiv 2305.14864): removes a centred block.

    As many layers stay before it as after it; of an odd number, one more after it.
    """
    _check("middle", num_layers, remove, num_layers - 2)
    before = (num_layers - remove) // 2
    return (*range(before), *range(before + remove, num_layers))


def both_sides(num_layers: int, remove: int) -> Keep:
    """Just CHOP's `both` (arXiv 2305.14864): removes next to both ends.

    Keeps layer 0, a middle block and L-1. Half of R goes on either side; of an odd R, one more next
    to the input, the side whose layers the paper's larger model missed least.
    """
    _check("both", num_layers, remove, num_layers - 2)
    near_output = remove // 2
    near_input = remove - near_output
    return (0, *range(1 + near_input, num_layers - 1 - near_output), num_layers - 1)


def max_gap(num_layers: int, remove: int) -> Keep:
    """Just CHOP's `max-gap` (arXiv 2305.14864): removed layers as far apart as possible.

    Keeps round(i·(L-1)/(K-1)) for i = 0..K-1, K = L-R; a half goes to the even neighbour.
    """
    _check("max-gap", num_layers, remove, num_layers - 2)
    last = num_layers - remove - 1
    return tuple(round(i * (num_layers - 1) / last) for i in range(last + 1))


def deepest(num_layers: int, remove: int) -> Keep:
    """The simple strategy of Deeper Layers (arXiv 2403.17887, §4.4): removes L-1-R..L-2.

    The same layers as `output`; the last layer always stays, the first may go.
    """
    _check("deepest", num_layers, remove, num_layers - 1)
    return (*range(num_layers - 1 - remove), num_layers - 1)


def first(num_layers: int, remove: int) -> Keep:
    """Why Lift so Heavy (arXiv 2402.11700): keeps the first L-R layers and nothing after."""
    _check("first", num_layers, remove, num_layers - 1)
    return tuple(range(num_layers - remove))


STRATEGIES: dict[str, Callable[[int, int], Keep]] = {
    "input": input_side,
    "output": output_side,
    "middle": middle,
    "both": both_sides,
    "max-gap": max_gap,
    "deepest": deepest,
    "first": first,
}


def choose(strategy: str, num_layers: int, remove: str | int | float) -> Keep:
    """The keep list of a strategy by name; `remove` as `resolve_remove` reads it."""
    if strategy not in STRATEGIES:
        raise UserError(
            f"--strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}"
            + did_you_mean(strategy, STRATEGIES)
        )
    return STRATEGIES[strategy](num_layers, resolve_remove(remove, num_layers))


def _check(strategy: str, num_layers: int, remove: int, largest: int) -> None:
    if largest < 1:
        raise UserError(
            f"strategy {strategy!r} cannot remove any layer of a model of {num_layers} layers"
        )
    if not 1 <= remove <= largest:
        raise UserError(
            f"strategy {strategy!r} can remove 1 to {largest} of {num_layers} layers, not {remove}"
        )


def resolve_remove(remove: str | int | float, num_layers: int) -> int:
    """How many layers to remove: a count ("12"), a fraction ("0.5") or a percentage ("50%").

    A number without a point is a count, one with a point a fraction of all layers. Fractions go to
    the nearest whole number of layers, halves down: 0.5 of 25 layers removes 12. Raises UserError
    unless at least one layer goes and one stays.
    """
    if num_layers == 1:
        raise UserError(f"--remove {remove}: the model has one layer, and one must stay")
    text = str(remove).strip()
    if re.fullmatch(r"-?\d{1,99}", text):
        count = int(text)
    else:
        count = _nearest_half_down(_fraction(text) * num_layers)
    if not 1 <= count < num_layers:
        meaning = "" if text == str(count) else f" ({count} layers)"
        raise UserError(
            f"--remove {text}{meaning}: from 1 to {num_layers - 1} of the {num_layers} layers "
            "can be removed"
        )
    return count


def _fraction(text: str) -> Fraction:
    number = text.removesuffix("%").strip()
    try:
        # Fraction would write out a billion digits of 1e999999999.
        if len(number) > 40 or re.search(r"[eE][+-]?\d{4}", number):
            raise ValueError
        fraction = Fraction(number) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"--remove {text!r} is not a number of layers (12), a fraction (0.5) "
            "or a percentage (50%)"
        ) from None
    if not (text.endswith("%") or 0 <= fraction <= 1):
        raise UserError(
            f"--remove {text}: a fraction lies between 0 and 1; give a count without a point"
        )
    return fraction


def _nearest_half_down(value: Fraction) -> int:
    return -((1 - 2 * value) // 2)
