"""Names of modules in a quantization_config, which follow the kept layers.

Every method lists, in one way or another, what it left alone or treated differently: `ignore`
(compressed-tensors), `modules_to_not_convert` (FP8, AWQ, MXFP4), `llm_int8_skip_modules`
(bitsandbytes), `dynamic` (GPTQModel), `exclude` (Quark). Whatever stands in such a list or as a key
is looked at: a plain name is renumbered or goes with its layer; a pattern that tells layers apart
is replaced by the names that it stands for; a pattern that does not stays. No jax.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from chopjax.errors import UserError, cut

LayerIndex = Callable[[str], tuple[int, str] | None]
Place = Callable[[int], int | None]  # a layer's new index, None where it goes

_REGEX = "re:"  # compressed-tensors
_SIGNS = ("+:", "-:")  # GPTQModel: what follows is a regex, too
MAX_PATTERN = 1000  # characters; a longer one is nobody's
MAX_REPETITIONS = 4  # in a regular expression; time grows with the length of names to that power


def follow_names(
    config: Mapping[str, Any], layer_index: LayerIndex, place: Place, tensors: Iterable[str]
) -> dict[str, Any]:
    """A quantization_config for the kept layers; whatever names no layer stays as it is.

    layer_index: a name's layer and its template, as Structure has it. tensors: of the model that
    is chopped; the modules that they belong to are what patterns are held against.
    """
    modules = _modules(tensors)
    changed: Any = _follow(config, layer_index, place, modules)
    return dict(changed)


def _modules(tensors: Iterable[str]) -> tuple[str, ...]:
    """Every module that holds a tensor, directly or not, as `a`, `a.b`, `a.b.c`."""
    found: dict[str, None] = {}
    for name in tensors:
        parts = name.split(".")
        for count in range(1, len(parts)):
            found[".".join(parts[:count])] = None
    return tuple(found)


def _follow(value: Any, layer_index: LayerIndex, place: Place, modules: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {
            name: _follow(inner, layer_index, place, modules)
            for key, inner in value.items()
            for name in _names(key, layer_index, place, modules)
        }
    if isinstance(value, list):
        return [
            new
            for entry in value
            for new in (
                _names(entry, layer_index, place, modules)
                if isinstance(entry, str)
                else [_follow(entry, layer_index, place, modules)]
            )
        ]
    return value


def _names(
    entry: str, layer_index: LayerIndex, place: Place, modules: tuple[str, ...]
) -> list[str]:
    """What an entry becomes: nothing, itself, another name, or several."""
    position = _plain_index(entry, layer_index)
    if position is not None:
        layer, template = position
        index = place(layer)
        return [] if index is None else [template.replace("{l}", str(index))]
    matches = _matcher(entry)
    if matches is None:
        # Without a number in it, it cannot tell layers apart.
        if _is_pattern(entry) and re.search("[0-9]", entry):
            raise UserError(
                f"config.json: quantization_config has the pattern {cut(repr(entry), 200)}, which "
                "is no regular expression, or one that takes too long to follow; write the names "
                "of the modules in its place"
            )
        return [entry]
    hits = [module for module in modules if matches(module)]
    if not _tells_layers_apart(hits, modules, layer_index):
        return [entry]
    named = []
    for module in _topmost(hits):
        found = layer_index(module)
        index = place(found[0]) if found else None
        if found is None:
            named += _spelled(entry, module)
        elif index is not None:
            named += _spelled(entry, found[1].replace("{l}", str(index)))
    return named


def _spelled(entry: str, module: str) -> list[str]:
    """A module and all below it, in the language of the entry that meant it."""
    for mark in (_REGEX, *_SIGNS):
        if entry.startswith(mark):
            return [f"{mark}{re.escape(module)}(\\..*)?$"]
    return [module] if _is_regex(entry) else [module, f"{module}.*"]


def _plain_index(entry: str, layer_index: LayerIndex) -> tuple[int, str] | None:
    """Of a name without wildcards, as layer_index; also where it begins below the model's root."""
    if _is_pattern(entry):
        return None
    for prefix in ("", "model.", "language_model.", "model.language_model."):
        position = layer_index(prefix + entry)
        if position is not None:
            return position[0], position[1].removeprefix(prefix)
    return None


def _matcher(entry: str) -> Callable[[str], object] | None:
    """Of an entry that is a pattern: whether it means a module. None for other text."""
    if not _is_pattern(entry) or len(entry) > MAX_PATTERN:
        return None
    for mark in (_REGEX, *_SIGNS):
        if entry.startswith(mark):
            return _regex(entry.removeprefix(mark))
    if _is_regex(entry):
        return _regex(entry)
    return lambda module: fnmatch.fnmatchcase(module, entry)


def _is_pattern(entry: str) -> bool:
    return entry.startswith((_REGEX, *_SIGNS)) or bool(re.search(r"[*?\[\]^$|()+\\]", entry))


def _is_regex(entry: str) -> bool:
    """AWQ writes regexes without a mark; `layers.*.mlp` reads the same both ways."""
    return "\\" in entry or ".*" in entry


def _regex(pattern: str) -> Callable[[str], object] | None:
    # What can take for ever on a name: repetitions of repetitions or of choices, and many of them.
    nested = re.search(r"[*+}?]\)+[*+{]|\|[^()]*\)+[*+{]", pattern)
    if nested or len(re.findall(r"[*+]|\{\d*,", pattern)) > MAX_REPETITIONS:
        return None
    try:
        return re.compile(pattern).match
    except (re.error, OverflowError, RecursionError):
        return None


def _tells_layers_apart(
    hits: Iterable[str], modules: Iterable[str], layer_index: LayerIndex
) -> bool:
    """Whether the pattern means a module of one layer and not the same module of another."""
    meant: dict[str, set[int]] = {}
    there: dict[str, set[int]] = {}
    for names, into in ((hits, meant), (modules, there)):
        for module in names:
            if position := layer_index(module):
                into.setdefault(position[1], set()).add(position[0])
    return any(layers != there[template] for template, layers in meant.items())


def _topmost(modules: Iterable[str]) -> list[str]:
    """Without those that stand below another one."""
    names = set(modules)
    return [
        name
        for name in sorted(names)
        if not any(name[:dot] in names for dot, letter in enumerate(name) if letter == ".")
    ]
