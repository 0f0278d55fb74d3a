"""Fields of a config.json that say something of each layer by counting, by a rhythm or by a demand.

They are of layer_fields.py's protocol, as lists and indices are; most belong to few model_types.
No jax.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from chopjax.checkpoint.layer_fields import (
    MAX_INDEX,
    Config,
    Spelled,
    hashable,
    indices,
    one_a_layer,
    plain_kind,
    shown,
    whole,
)
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges


@dataclasses.dataclass(frozen=True)
class EndsWith:
    """The last layer must be of one kind, whatever the list says: a cut that ends otherwise is
    refused."""

    types: Spelled
    kind: str

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    def says(self) -> str:
        return f"{self.types.key}: refused where the last that stays is not {self.kind}"

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        return None

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        kinds = self.types.kinds(config, num_layers) or []
        if plain_kind(kinds[keep[-1]]) != self.kind:
            these = tuple(i for i, kind in enumerate(kinds) if plain_kind(kind) == self.kind)
            raise UserError(
                f"the last of the layers to keep, {keep[-1]}, is of kind {kinds[keep[-1]]}, and "
                f"this model_type makes its last layer {self.kind} in any case. Keep one of "
                f"{ranges(these)} as the last"
            )
        return {}


@dataclasses.dataclass(frozen=True)
class Holds:
    """One layer of a kind there must be: transformers refuses a config without."""

    types: Spelled
    kind: str

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    def says(self) -> str:
        return f"{self.types.key}: refused where none that stays is {self.kind}"

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        return None

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        kinds = [plain_kind(kind) for kind in self.types.kinds(config, num_layers) or []]
        if self.kind not in (kinds[layer] for layer in keep):
            these = tuple(i for i, kind in enumerate(kinds) if kind == self.kind)
            raise UserError(
                f"none of the layers to keep is {self.kind}, and transformers does not load this "
                f"model_type without one. Keep one of {ranges(these)}"
            )
        return {}


@dataclasses.dataclass(frozen=True)
class FirstLayers:
    """How many layers, from the first on, are of another kind: those of them that stay."""

    key: str
    default: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: the first layers that stay are counted"

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        first = whole(config, self.key, self.default)
        return [f"{'below' if i < first else 'from'} {self.key}" for i in range(num_layers)]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        first = whole(config, self.key, self.default)
        left = sum(layer < first for layer in keep)
        if left == self.default and config.get(self.key) is None:
            return {}
        return {self.key: left}


@dataclasses.dataclass(frozen=True)
class SparseSteps:
    """Qwen's mixtures: layer i has experts unless it is in mlp_only_layers or (i + 1) %
    decoder_sparse_step is not 0. Any cut can be said with a step of 1 and a list."""

    @property
    def keys(self) -> tuple[str, ...]:
        return ("mlp_only_layers", "decoder_sparse_step")

    def says(self) -> str:
        return "mlp_only_layers: indices, renumbered; decoder_sparse_step: written out into it"

    def _dense(self, config: Config, num_layers: int) -> list[bool]:
        named = set(indices(config, "mlp_only_layers") or ())
        step = whole(config, "decoder_sparse_step", 1, 1)
        return [layer in named or (layer + 1) % step != 0 for layer in range(num_layers)]

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        return ["dense" if dense else "sparse" for dense in self._dense(config, num_layers)]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        dense = self._dense(config, num_layers)
        named = [place for place, layer in enumerate(keep) if dense[layer]]
        changes: dict[str, Any] = {}
        if named or config.get("mlp_only_layers") is not None:
            changes["mlp_only_layers"] = named
        if whole(config, "decoder_sparse_step", 1, 1) != 1:
            changes["decoder_sparse_step"] = 1
        return changes


@dataclasses.dataclass(frozen=True)
class PeriodAndOffset:
    """Layer i is of another kind where i % period = offset, and no list can say it otherwise.

    idle: a key that makes the whole field mean nothing while it is at most 1.
    """

    period: str
    offset: str
    defaults: tuple[int, int]
    idle: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.period, self.offset)

    def says(self) -> str:
        return f"{self.period}, {self.offset}: as they are or anew; refused where none fits"

    def _places(self, config: Config) -> tuple[int, int]:
        period = whole(config, self.period, self.defaults[0], 1)
        offset = whole(config, self.offset, self.defaults[1])
        if offset >= period:
            raise UserError(
                f"config.json: {self.offset} {offset} is not below {self.period} {period}"
            )
        return period, offset

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        if self.idle and whole(config, self.idle, 2) <= 1:
            return None
        period, offset = self._places(config)
        return [
            f"{'at' if layer % period == offset else 'off'} {self.offset}"
            for layer in range(num_layers)
        ]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        if self.kinds(config, num_layers) is None:
            return {}
        before = self._places(config)
        chosen = [layer % before[0] == before[1] for layer in keep]
        size = len(keep)
        longer = range(1, size + 2)
        for period, offset in [before, *((p, o) for p in longer for o in range(p))]:
            if [place % period == offset for place in range(size)] == chosen:
                changes = {}
                for key, old, new in zip(self.keys, before, (period, offset), strict=True):
                    if new != old:
                        changes[key] = new
                return changes
        named = tuple(place for place, is_one in enumerate(chosen) if is_one)
        raise UserError(
            f"config.json says which layers are of another kind by {self.period} and "
            f"{self.offset} alone, and of the layers to keep those would be {ranges(named)}, which "
            f"no period gives. Keep layers in the model's own rhythm: --period whole removes whole "
            f"periods of {before[0]} layers"
        )


@dataclasses.dataclass(frozen=True)
class FromToStep:
    """Ernie's mixtures: layer i has experts where (i + 1) % interval = 0 between two indices."""

    start: str = "moe_layer_start_index"
    end: str = "moe_layer_end_index"
    interval: str = "moe_layer_interval"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.start, self.end, self.interval)

    def says(self) -> str:
        return f"{self.start}, {self.end}: renumbered; refused where {self.interval} fits no more"

    def _sparse(self, config: Config, num_layers: int) -> list[bool]:
        start = whole(config, self.start, 1)
        end = whole(config, self.end, -1, -1)
        step = whole(config, self.interval, 1, 1)
        end = num_layers - 1 if end == -1 else end
        return [(i + 1) % step == 0 and start <= i <= end for i in range(num_layers)]

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        return ["sparse" if is_so else "dense" for is_so in self._sparse(config, num_layers)]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        sparse = self._sparse(config, num_layers)
        chosen = [sparse[layer] for layer in keep]
        places = [place for place, is_so in enumerate(chosen) if is_so]
        start, end = (places[0], places[-1]) if places else (len(keep), len(keep))
        step = whole(config, self.interval, 1, 1)
        for interval in dict.fromkeys((step, 1, *range(2, len(keep) + 1))):
            found = [(i + 1) % interval == 0 and start <= i <= end for i in range(len(keep))]
            if found == chosen:
                new = {self.start: start, self.end: end}
                return new | ({self.interval: interval} if interval != step else {})
        raise UserError(
            f"config.json says which layers have experts by {', '.join(self.keys)} alone, and of "
            f"the layers to keep those would be {ranges(places)}, which no interval gives"
        )


@dataclasses.dataclass(frozen=True)
class Repeated:
    """GPT-Neo's attention_types, [[["global", "local"], 12]]: kinds and how often they repeat."""

    key: str = "attention_types"
    list_key: str = "attention_layers"
    default: tuple[str, ...] = ("global", "local")

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.list_key)

    def says(self) -> str:
        return f"{self.key}: written out, one entry a layer; {self.list_key}: sliced"

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        if config.get(self.list_key) is not None:  # it has the last word
            return [hashable(kind) for kind in one_a_layer(config, self.list_key, num_layers)]
        value = config.get(self.key)
        if value is None:
            return [self.default[i % len(self.default)] for i in range(num_layers)]
        found: list[Any] = []
        for entry in value if isinstance(value, list) else [None]:
            match entry:
                case [[*kinds], int(count)] if 0 <= count <= MAX_INDEX and len(found) <= num_layers:
                    found += kinds[:num_layers] * min(count, num_layers)
                case _:
                    raise UserError(
                        f"config.json: {self.key} is {shown(value)}; a list such as "
                        '[[["global", "local"], 12]] is needed'
                    )
        if len(found) != num_layers:
            raise UserError(
                f"config.json: {self.key} {shown(value)} does not make {num_layers} layers"
            )
        return [hashable(kind) for kind in found]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        kinds = self.kinds(config, num_layers) or []
        changes: dict[str, Any] = {self.key: [[[kinds[layer]], 1] for layer in keep]}
        if config.get(self.list_key) is not None:
            stated = one_a_layer(config, self.list_key, num_layers)
            changes[self.list_key] = [stated[layer] for layer in keep]
        return changes


@dataclasses.dataclass(frozen=True)
class SharedKeys:
    """The last layers take keys and values from the last layer of their kind before them.

    A cut that removes such a source is refused: it would give the layers behind it another's.
    types: the field with the kinds. default: how many layers share where the key is missing.
    """

    types: Spelled
    default: int
    key: str = "num_kv_shared_layers"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: those that stay are counted; refused where their source would go"

    def _first(self, config: Config, num_layers: int) -> int:
        shared = whole(config, self.key, self.default)
        if shared >= num_layers:
            raise UserError(f"config.json: {self.key} is {shared} of {num_layers} layers")
        return num_layers - shared

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        first = self._first(config, num_layers)
        if first == num_layers:
            return None
        return ["keys of another layer" if i >= first else "own keys" for i in range(num_layers)]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        first = self._first(config, num_layers)
        kinds = self.types.kinds(config, num_layers) or []
        takers = [layer for layer in keep if layer >= first]
        source = {kind: layer for layer, kind in enumerate(kinds[:first])}
        if strange := sorted({str(kind) for kind in kinds[first:] if kind not in source}):
            raise UserError(
                f"config.json: the last {num_layers - first} layers take keys and values from "
                f"those before ({self.key}), of which none is {', '.join(strange)}"
            )
        gone = sorted({source[kinds[layer]] for layer in takers} - set(keep))
        if gone:
            raise UserError(
                f"layers {ranges(tuple(takers))} take their keys and values from layer "
                f"{', '.join(map(str, gone))}, which would go ({self.key} "
                f"{num_layers - first}). Keep it, or remove the layers that share"
            )
        if config.get(self.key) is None and len(takers) == self.default:
            return {}
        return {self.key: len(takers)}


@dataclasses.dataclass(frozen=True)
class Must:
    """A field that ties a layer to its index, or to the number of layers, in a way that a chop
    cannot mend: it must have one of these values, which mean that it is not in use."""

    key: str
    values: tuple[Any, ...]
    reason: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: refused where in use"

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        return None

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        value = config.get(self.key)
        if value is not None and not any(value is v or value == v for v in self.values):
            raise UserError(f"config.json: {self.key} is {shown(value)}: {self.reason}")
        return {}
