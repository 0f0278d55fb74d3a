"""What a sweep makes of the parent, by the words of its setting `strategies`. No jax.

    input                         a chop, of every number of layers in `remove`
    input:0.25                    of this many
    keep:0:17-29                  a chop to these layers (`chopjax chop --keep 0,17-29`)
    sparsegpt:2:4                 zeros (`chopjax sparsify`)
    narrow:mlp=0.5:heads=0.25     narrower layers (`chopjax narrow`), by activations; by gradients
                                  narrow:gradient:mlp=0.5
    int8, int4:gptq               fewer bits (`chopjax quantize`), the nearest or by GPTQ
    dimchop:0.5                   columns of zeros that come while the point is trained (DimCHOP)
    input:0.25+wanda:0.5+int4     one after the other: a chop comes first, DimCHOP last
    int4+wanda:2:4                zeros among the numbers that int4's codes stand for: floats

`magnitude` is a chop by a measure, `magnitude:0.5` and `magnitude:2:4` are zeros.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from chopjax.checkpoint.compressed_tensors import FORMAT
from chopjax.chop.configurations import STRATEGIES, resolve_remove
from chopjax.chop.importance import MEASURED
from chopjax.errors import UserError, did_you_mean
from chopjax.keep import Keep, parse_keep
from chopjax.models.formats import Kind
from chopjax.sparsify.matrices import METHODS
from chopjax.sparsify.pattern import parse_pattern

CHOPS = (*STRATEGIES, *MEASURED)
KEEP, LAYERS = "keep", re.compile(r"\d+(-\d+)?")
NARROW, UNITS = "narrow", ("mlp", "heads", "embed")
SCORES = ("activation", "gradient")  # the METHODS of narrow/walk.py, which wants jax
GPTQ, DIMCHOP = "gptq", "dimchop"
WORDS = (*CHOPS, KEEP, *METHODS, NARROW, *FORMAT, DIMCHOP)


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Zeros: what SparsifySettings has."""

    method: str
    pattern: str


@dataclasses.dataclass(frozen=True)
class Narrow:
    """Narrower layers: what NarrowSettings has."""

    method: str
    shares: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Bits:
    """Fewer bits. method: nearest or gptq."""

    kind: Kind
    method: str


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of zeros: of DimChopSettings `final`."""

    final: float


Change = Sparse | Narrow | Bits | Columns


@dataclasses.dataclass(frozen=True)
class Strategy:
    """name: as it was written. chop: one of CHOPS, or KEEP; empty: no layer goes. remove: how many
    layers, as resolve_remove reads it; empty: each number that the sweep has. changes: after the
    chop. keep: with KEEP, the layers that stay, as parse_keep reads them."""

    name: str
    chop: str = ""
    remove: str = ""
    changes: tuple[Change, ...] = ()
    keep: str = ""

    @property
    def looks(self) -> bool:
        """Whether what comes out depends on a text."""
        return self.chop in MEASURED or any(map(looks, self.changes))

    def counts(self, every: Sequence[int], num_layers: int) -> Sequence[int]:
        """How many layers go: one number or several. every: those of the sweep. Raises UserError
        where the model has not so many, or not those."""
        if not self.chop:
            return [0]
        if self.keep:
            return [num_layers - len(self.kept(num_layers))]
        return [resolve_remove(self.remove, num_layers)] if self.remove else every

    def kept(self, num_layers: int) -> Keep:
        """The layers of `keep`. Raises UserError where the model has not all of them."""
        return parse_keep(self.keep, num_layers, f"strategies: {self.name!r}: the list")


def looks(change: Change) -> bool:
    """Whether it looks at a text."""
    if isinstance(change, Sparse):
        return change.method != "magnitude"
    return isinstance(change, Narrow) or (isinstance(change, Bits) and change.method == GPTQ)


def before_training(changes: Sequence[Change]) -> list[Sparse | Narrow | Bits]:
    """Those that make a checkpoint of another."""
    return [change for change in changes if not isinstance(change, Columns)]


def masked_by(changes: Sequence[Change]) -> float:
    """The share of columns that training masks in the end; 0 without DimCHOP."""
    return next((change.final for change in changes if isinstance(change, Columns)), 0.0)


def has_zeros(changes: Sequence[Change]) -> bool:
    return any(isinstance(change, Sparse) for change in changes)


def kind_of(changes: Sequence[Change]) -> str:
    """The format that the weights are in after them; empty for floats, which everything else
    gives."""
    last = changes[-1] if changes else None
    return last.kind if isinstance(last, Bits) else ""


def parse_strategy(text: str) -> Strategy:
    """Raises UserError that says which part is wrong, and what is allowed."""
    chop = remove = keep = ""
    changes: list[Change] = []
    try:
        for number, part in enumerate(text.split("+")):
            word, _, rest = part.strip().partition(":")
            if masked_by(changes):
                raise UserError(f"nothing comes after {DIMCHOP}, but {part!r} does")
            if word == KEEP or (word in CHOPS and not (rest and word in METHODS)):
                if number:
                    raise UserError(f"a chop comes first, and {word} does not")
                chop = word
                if word == KEEP:
                    keep = _listed(rest)
                else:
                    remove = rest
            else:
                change = _change(word, rest)
                if isinstance(change, Bits) and (kind := kind_of(changes)):
                    raise UserError(f"weights in {kind} are not quantized again, to {part!r}")
                changes.append(change)
        if masked_by(changes) and has_zeros(changes):
            raise UserError(f"zeros that were made stay, and {DIMCHOP} chooses columns anew")
    except UserError as error:
        raise UserError(f"strategies: {text!r}: {error}") from None
    return Strategy(text, chop, remove, tuple(changes), keep)


def _listed(rest: str) -> str:
    """Commas are between strategies: "0:17-29" → "0,17-29"."""
    if not all(map(LAYERS.fullmatch, rest.split(":"))):
        raise UserError(f"{KEEP}: say which layers stay, such as {KEEP}:0:17-29")
    return rest.replace(":", ",")


def _change(word: str, rest: str) -> Change:
    if word in METHODS:
        return Sparse(word, parse_pattern(rest).name)
    if word == NARROW:
        return _narrow(rest)
    if word == DIMCHOP:
        if not 0 < (final := _number(rest)) < 1:
            raise UserError(f"{DIMCHOP}:SHARE, a share of the columns between 0 and 1")
        return Columns(final)
    if kind := next((kind for kind in FORMAT if kind == word), None):
        if rest not in ("", GPTQ):
            raise UserError(f"{kind} stands alone or as {kind}:{GPTQ}, not {kind}:{rest}")
        return Bits(kind, rest or "nearest")
    if LAYERS.fullmatch(word):
        raise UserError(f"commas are between strategies: a list of layers is {KEEP}:0:{word}")
    if word.partition("=")[0] in UNITS:
        raise UserError("the shares of one narrow go together: narrow:mlp=0.5:heads=0.25")
    raise UserError(f"{word!r} is not one of {', '.join(WORDS)}{did_you_mean(word, WORDS)}")


def _narrow(rest: str) -> Narrow:
    methods, shares = list[str](), dict[str, float]()
    for part in filter(None, rest.split(":")):
        unit, equals, share = part.partition("=")
        if unit in shares or (part in SCORES and methods):
            raise UserError(f"narrow:{rest}: {part} comes after another of its kind")
        if part in SCORES:
            methods.append(part)
            continue
        value = _number(share)
        if not equals or unit not in UNITS or not 0 < value < 1:
            raise UserError(
                f"narrow:{part}: {', '.join(f'{name}=SHARE' for name in UNITS)} with a share "
                f"between 0 and 1, and {' or '.join(SCORES)} are allowed"
            )
        shares[unit] = value
    if not shares:
        raise UserError("narrow: say of what, such as narrow:mlp=0.5")
    return Narrow(methods[0] if methods else SCORES[0], tuple(shares.items()))


def _number(text: str) -> float:
    """0 where it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0
