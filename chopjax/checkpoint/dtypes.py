"""In which type each tensor is written, and how config.json says so. No jax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.errors import UserError, cut, listing

# Of config.json: the newer spelling, which wins as it does in transformers, and the older.
DTYPE_KEYS = ("dtype", "torch_dtype")
_SAFETENSORS_NAMES = {str(dtype): name for name, dtype in DTYPES.items()}


def stated_dtype(raw_config: Mapping[str, Any]) -> str | None:
    """The type that config.json states, None where it states none."""
    for key in DTYPE_KEYS:
        if raw_config.get(key) is not None:
            return str(raw_config[key]).removeprefix("torch.")
    return None


def with_dtype(raw_config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json that states the type in every spelling it has; the older where it has none."""
    keys = [key for key in DTYPE_KEYS if key in raw_config] or [DTYPE_KEYS[-1]]
    return {**raw_config, **dict.fromkeys(keys, dtype)}


def tensor_dtypes(
    names: Iterable[str],
    raw_config: Mapping[str, Any],
    types: Mapping[str, str] | None,
    dtype: str | None = None,
) -> dict[str, str]:
    """Tensor → its safetensors type: `dtype` if given, else as found, else as config.json states.

    types: None after training. A config.json that states no type means float32.
    """
    if dtype is None and types is not None:
        names = list(names)
        if missing := [name for name in names if name not in types]:
            raise UserError(
                "config.json and the record of the tensors' types disagree; the record lacks\n"
                f"{listing(missing)}"
            )
        return {name: types[name] for name in names}
    chosen = dtype or stated_dtype(raw_config) or "float32"
    if chosen not in _SAFETENSORS_NAMES:
        raise UserError(
            f"config.json states the type {cut(repr(chosen), 80)}, which does not exist; correct "
            "it there, or give --dtype where the verb has it"
        )
    return dict.fromkeys(names, _SAFETENSORS_NAMES[chosen])
