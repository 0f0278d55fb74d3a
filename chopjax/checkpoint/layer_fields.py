"""Fields of a config.json that say something of each layer, and how each follows a keep list.

A field is one of the small classes below. All of them answer two questions: of which kind each
layer is (`kinds`), and what the config of the kept layers says in the field's place (`follow`).
Layers count from 0. What cannot be said of the kept layers is a UserError with the reason. No jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from chopjax.errors import UserError, cut
from chopjax.keep import Keep

FULL, SLIDING, LINEAR, CHUNKED = (
    f"{kind}_attention" for kind in ("full", "sliding", "linear", "chunked")
)
Config = Mapping[str, Any]  # the part of config.json that is about the language model
MAX_INDEX = 1_000_000  # no model has so many layers, and a list of them fits into memory


class Field(Protocol):
    """keys: of config.json, the one that is written first."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def says(self) -> str:
        """How it follows, for the table of families."""
        ...

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        """One entry a layer; None where the field is not there or tells no layers apart."""
        ...

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        """What changes in config.json."""
        ...


# ------------------------------------------------------------------------------ reading, in trust


def shown(value: Any) -> str:
    """A value as a message has it."""
    return cut(repr(value), 80)


def whole(config: Config, key: str, default: int, least: int = 0) -> int:
    """A whole number; a missing key or null gives the default."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_INDEX:
        raise UserError(
            f"config.json: {key} is {shown(value)}; a whole number of at least {least} is needed"
        )
    return value


def flag(config: Config, key: str, default: bool) -> bool:
    """True or false; a missing key or null gives the default."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise UserError(f"config.json: {key} is {shown(value)}; true or false is needed")
    return value


def one_a_layer(config: Config, key: str, num_layers: int, most: int | None = None) -> list[Any]:
    """The list under a key, which must be there. It may have up to `most` entries: some have
    entries for layers of multi-token prediction, which stand behind the others."""
    value = config[key]
    if not isinstance(value, list):
        raise UserError(f"config.json: {key} is {shown(value)}; a list is needed")
    if not num_layers <= len(value) <= (most or num_layers):
        raise UserError(
            f"config.json: {key} has {len(value)} entries for {num_layers} layers; one a layer is "
            "needed"
        )
    return value


def indices(config: Config, key: str) -> list[int] | None:
    """The list of layer indices under a key, if there is one."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        type(index) is int and 0 <= index <= MAX_INDEX for index in value
    ):
        raise UserError(f"config.json: {key} is {shown(value)}; a list of layer indices is needed")
    return value


def _picked(values: Sequence[Any], num_layers: int, keep: Keep) -> list[Any]:
    """The kept layers' entries, and what stands behind those of all layers."""
    return [values[layer] for layer in keep] + list(values[num_layers:])


# -------------------------------------------------------------------------------- kinds of fields


@dataclasses.dataclass(frozen=True)
class Listed:
    """A list with one entry a layer. A value that is no list is for all layers where `or_one`;
    entries behind the last layer (of multi-token prediction) stay behind it."""

    key: str
    or_one: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: sliced"

    def _values(self, config: Config, num_layers: int) -> list[Any] | None:
        value = config.get(self.key)
        if value is None or (self.or_one and not isinstance(value, list)):
            return None
        return one_a_layer(config, self.key, num_layers, MAX_INDEX)

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        values = self._values(config, num_layers)
        return None if values is None else [hashable(value) for value in values[:num_layers]]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        values = self._values(config, num_layers)
        return {} if values is None else {self.key: _picked(values, num_layers, keep)}


def hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


@dataclasses.dataclass(frozen=True)
class Letters:
    """A string with one letter a layer, and perhaps bars between them."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: sliced, a letter a layer"

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        value = config.get(self.key)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) != num_layers:
            raise UserError(
                f"config.json: {self.key} is {shown(value)}; a text of one letter a layer, "
                f"{num_layers}, is needed"
            )
        return list(value)

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        letters = self.kinds(config, num_layers)
        return {} if letters is None else {self.key: "".join(letters[layer] for layer in keep)}


@dataclasses.dataclass(frozen=True)
class Spelled:
    """A list with one entry a layer, or else a pattern over indices.

    pattern: what transformers makes of a config without the list. A chop writes the list out, for
    the pattern would give the kept layers other kinds than they had; where all layers are of one
    kind and the pattern says so of the kept ones, too, it writes nothing.
    words: the pattern, for people.
    """

    key: str
    pattern: Callable[[Config, int], list[Any]]
    words: str
    empty_is_missing: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: sliced; missing, written out ({self.words})"

    def _stated(self, config: Config) -> bool:
        value = config.get(self.key)
        return value is not None and not (self.empty_is_missing and value == [])

    def _values(self, config: Config, num_layers: int) -> list[Any]:
        if self._stated(config):
            return one_a_layer(config, self.key, num_layers, MAX_INDEX)
        return self.pattern(config, num_layers)

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        return [hashable(value) for value in self._values(config, num_layers)[:num_layers]]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        values = self._values(config, num_layers)
        chosen = _picked(values, num_layers, keep)
        one_kind = len(set(self.kinds(config, num_layers) or ())) < 2
        if not self._stated(config) and one_kind and self.pattern(config, len(keep)) == chosen:
            return {}
        return {self.key: chosen}

    def differs(self, config: Config, num_layers: int) -> bool:
        """Whether the list says something else than a reader of the pattern alone would take."""
        try:
            pattern = self.pattern(config, num_layers)
        except UserError:
            return True
        stated = self.kinds(config, num_layers)
        return stated is not None and [plain_kind(kind) for kind in stated] != [
            plain_kind(hashable(kind)) for kind in pattern
        ]


def plain_kind(kind: Any) -> Any:
    """The older names of kinds, which transformers takes for the newer ones."""
    return {"mamba": LINEAR, "attention": FULL}.get(kind, kind) if isinstance(kind, str) else kind


def every(key: str, default: int, nth: str = FULL, others: str = SLIDING) -> Spelled:
    """layer_types: `nth` where (i + 1) % config[key] = 0, `others` elsewhere."""

    def pattern(config: Config, num_layers: int) -> list[Any]:
        period = whole(config, key, default, 1)
        return [others if (layer + 1) % period else nth for layer in range(num_layers)]

    return Spelled("layer_types", pattern, f"{nth} where (i+1) % {key} ({default}) = 0")


def always(period: int, nth: str = FULL, others: str = SLIDING, place: int = -1) -> Spelled:
    """layer_types: `nth` at one place of every period, whatever the config says."""
    place %= period

    def pattern(config: Config, num_layers: int) -> list[Any]:
        return [nth if layer % period == place else others for layer in range(num_layers)]

    return Spelled("layer_types", pattern, f"{nth} where i % {period} = {place}")


@dataclasses.dataclass(frozen=True)
class Indices:
    """A list of the layers that are of another kind than the rest, by index.

    starting: what transformers makes of a missing key, where that is not an empty list; `words`
    say it.
    """

    key: str
    starting: Callable[[Config, int], list[int]] | None = None
    words: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        more = f"; missing, written out ({self.words})" if self.words else ""
        return f"{self.key}: indices, renumbered{more}"

    def _values(self, config: Config, num_layers: int) -> list[int] | None:
        values = indices(config, self.key)
        if values is None and self.starting is not None:
            return self.starting(config, num_layers)
        return values

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        values = self._values(config, num_layers)
        if values is None:
            return None
        named = set(values)
        return [f"{'' if i in named else 'not '}in {self.key}" for i in range(num_layers)]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        values = self._values(config, num_layers)
        if values is None:
            return {}
        named = set(values)
        return {self.key: [place for place, layer in enumerate(keep) if layer in named]}


@dataclasses.dataclass(frozen=True)
class Keyed:
    """An object whose keys are layer indices; other keys stay."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def says(self) -> str:
        return f"{self.key}: keys renumbered"

    def _entries(self, config: Config) -> dict[str, Any]:
        value = config.get(self.key)
        if not isinstance(value, dict | None):
            raise UserError(f"config.json: {self.key} is {shown(value)}; an object is needed")
        return value or {}

    def kinds(self, config: Config, num_layers: int) -> list[Any] | None:
        entries = self._entries(config)
        if not any(str(layer) in entries for layer in range(num_layers)):
            return None
        return [hashable(entries.get(str(layer))) for layer in range(num_layers)]

    def follow(self, config: Config, num_layers: int, keep: Keep) -> dict[str, Any]:
        entries = self._entries(config)
        if not entries:
            return {}
        others = {key: value for key, value in entries.items() if not key.isdecimal()}
        kept = {
            str(place): entries[str(layer)]
            for place, layer in enumerate(keep)
            if str(layer) in entries
        }
        return {self.key: others | kept}
