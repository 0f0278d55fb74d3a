"""What every setting of a recipe means: for --print-config, and as docs/settings.md.

    python -m chopjax.runs.settings_reference > docs/settings.md

The sentences are the comments beside the fields of the settings' dataclasses: on the field's line,
or on the lines above it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from chopjax.runs.settings import (
    PipelineSettings,
    SweepSettings,
    pipeline_config,
    sweep_config,
)
from chopjax.train import settings as train_settings
from chopjax.train.same_run import flat

HEADER = """\
# Settings

A recipe is a Python file whose `get_config()` returns these settings; `configs/` has some to begin
with. On the command line `--config.FIELD=VALUE` changes one of them, and `--print-config` shows
what a recipe comes to:

```sh
chopjax train --config configs/heal.py --config.total_steps=200 --print-config
```

This file is made by `python -m chopjax.runs.settings_reference > docs/settings.md`.
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the table. name: "data.batch_size"."""

    name: str
    type: str
    default: Any
    sentence: str


def settings_of(kind: type, prefix: str = "") -> list[Setting]:
    """All settings of a dataclass, those of dataclasses within it included."""
    types, said, settings = typing.get_type_hints(kind), sentences(kind), []
    for field in dataclasses.fields(kind):
        wanted, name = types[field.name], prefix + field.name
        if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
            settings += settings_of(wanted, f"{name}.")
            continue
        made = field.default_factory
        default = made() if made is not dataclasses.MISSING else field.default
        settings.append(Setting(name, _type(wanted), default, said.get(field.name, "")))
    return settings


def _type(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return " or ".join(map(str, typing.get_args(wanted)))
    name: str = (typing.get_origin(wanted) or wanted).__name__
    return name


@functools.cache
def sentences(kind: type) -> Mapping[str, str]:
    """Field → its comment, those of the classes that it inherits from included."""
    by_field: dict[str, str] = {}
    for base in kind.__bases__:
        if dataclasses.is_dataclass(base):
            by_field |= sentences(base)
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        first = node.lineno
        while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        said = [comments[n] for n in range(first, (node.end_lineno or first) + 1) if n in comments]
        by_field[node.target.id] = " ".join(said)
    return by_field


# ------------------------------------------------------------------------------- --print-config


def as_recipe(config: ConfigDict) -> str:
    """A config as the lines that set it in a recipe, each with what it means."""
    known = {setting.name: setting.sentence for setting in settings_of(_kind(config))}
    order = {name: place for place, name in enumerate(known)}  # a config has them by the alphabet
    values = sorted(flat(config.to_dict()).items(), key=lambda pair: order.get(pair[0], len(order)))
    lines = []
    for name, value in values:
        if value is None:  # what differs for a method, and is not set
            continue
        said = known.get(name)
        lines.append(f"config.{name} = {value!r}" + (f"  # {said}" if said else ""))
    return "\n".join(lines)


def _kind(config: ConfigDict) -> type:
    """Whose settings a config holds: a sweep's, a pipeline's or a training run's."""
    if "strategies" in config:
        return SweepSettings
    return PipelineSettings if "heal" in config else train_settings.Settings


# ----------------------------------------------------------------------------- docs/settings.md


def as_markdown() -> str:
    """All settings of all recipes."""
    parts = [HEADER]
    trained = settings_of(train_settings.Settings)
    parts.append(_section("chopjax train", train_settings.Settings, trained))
    for verb, kind, default in (
        ("run", PipelineSettings, pipeline_config()),
        ("sweep", SweepSettings, sweep_config()),
    ):
        there = flat(default.to_dict())
        own = [setting for setting in settings_of(kind) if not setting.name.startswith("heal.")]
        decided = [f"`{s.name}`" for s in trained if f"heal.{s.name}" not in there]
        parts.append(
            _section(f"chopjax {verb}", kind, own)
            + f"\nThe settings of healing are those of `chopjax train`, as `heal.FIELD`, without "
            f"what `chopjax {verb}` fills in itself: {', '.join(decided)}.\n"
        )
    return "\n".join(parts)


def _section(title: str, kind: type, rows: list[Setting]) -> str:
    lines = [f"## {title}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    lines += ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        default = f"`{row.default!r}`".replace("|", "\\|")
        said = row.sentence.replace("|", "\\|")
        lines.append(f"| `{row.name}` | {row.type} | {default} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
