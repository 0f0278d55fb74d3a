"""Recipes: Python files with get_config(), and `--config.FIELD=VALUE` on the command line."""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chopjax.disk.files import expanded
from chopjax.errors import UserError, did_you_mean
from chopjax.train.settings import MOST


class _Recipe(importlib.machinery.SourceFileLoader):
    """Leaves no __pycache__ beside a user's file."""

    def set_data(self, *data: object, **mode: object) -> None:
        pass


def load_config(file: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """Run a recipe and apply overrides ("data.batch_size=8") to it.

    The recipe is Python, and is executed. Raises UserError where the file or a field does not
    exist (with the names that come near) and where a value does not have the field's type.
    """
    path = expanded(file)
    if not path.is_file():
        raise UserError(f"--config {file}: no such file")
    if path.suffix != ".py":
        raise UserError(f"--config {file}: not a Python file (.py)")
    name = f"chopjax_recipe_{path.stem}"
    loader = _Recipe(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # What a recipe prints must not stand in the JSON that a verb prints.
        with contextlib.redirect_stdout(sys.stderr):
            loader.exec_module(module)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise UserError(f"--config {file}: {line}{error.msg}") from error
    except PermissionError:
        raise
    except (Exception, SystemExit) as error:  # whatever the recipe does is its author's to mend
        raise UserError(f"--config {file}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config {file}: there is no function get_config() in it")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            config = module.get_config()
    except AttributeError as error:  # a locked ConfigDict refuses fields that it does not have
        raise UserError(f"--config {file}: {_first_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"--config {file}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(
            f"--config {file}: get_config() must return a ConfigDict, not {kind}; begin with "
            "default_config() and return the result"
        )
    for assignment in overrides:
        override(config, assignment)
    return config


def _first_line(error: Exception) -> str:
    match = re.search(r'Key "(.*?)" does not exist', str(error))
    near = re.search(r'Did you mean "(.*?)" instead', str(error))
    hint = f"; did you mean {near[1]}?" if near else ""
    return f"there is no field {match[1]!r} to set{hint}" if match else str(error)


def override(config: ConfigDict, assignment: str) -> None:
    """Set one field from text: `data.batch_size=8`."""
    name, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"--config.{name}: write --config.{name}=VALUE")
    known = list(fields(config))
    *parents, last = name.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or last not in node:
        # A right name in the wrong group is the likeliest slip, and spelling does not show it.
        same = [field for field in known if field.split(".")[-1] == last]
        near = f"; did you mean {' or '.join(same)}?" if same else did_you_mean(name, known)
        near = near or did_you_mean(last, {field.split(".")[-1] for field in known})
        hint = near or "; --print-config shows them all"
        raise UserError(f"--config.{name}: no such field{hint}")
    node[last] = _parse(f"--config.{name}", node[last], text)


def fields(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Field → value, a field of a group by its whole name (data.batch_size)."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        group = isinstance(value, ConfigDict) and len(value) > 0
        values |= fields(value, f"{prefix}{key}.") if group else {prefix + key: value}
    return values


def _parse(where: str, current: Any, text: str) -> Any:
    """`text` as a value of the type that the field has now."""
    kind = type(current)
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e6
    if kind is float and type(value) is int and abs(value) < MOST:
        value = float(value)
    if kind is ConfigDict and isinstance(value, dict):
        try:
            return ConfigDict(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where}={text}: {error}") from error
    if current is not None and type(value) is not kind:
        raise UserError(f"{where}={text}: a value of type {kind.__name__} is needed")
    return value
