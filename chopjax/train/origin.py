"""Where a run's parameters come from, and how many layers they have at which step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.describe import Description, describe, write_own
from chopjax.checkpoint.packed import say_decoded
from chopjax.checkpoint.provenance import SCRATCH, compose
from chopjax.chop.configurations import choose
from chopjax.chop.surgery import chop_config
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.keep import Keep, parse_keep
from chopjax.models import families
from chopjax.models.adapter_settings import target_paths
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import usual_naming
from chopjax.train.own_files import new_assets
from chopjax.train.settings import ChopSettings, Settings


@dataclasses.dataclass(frozen=True)
class Origin:
    """The parent, and what becomes of its layers.

    keep: the layers that stay, None for all of them. chop_after: the updates made with all of the
    parent's layers; the chop comes right after the last of them. shape_of: of random weights in the
    shape of a model, whose: name, revision, num_layers and kept_layers.
    """

    name: str
    revision: str | None
    raw_config: dict[str, Any]
    keep: Keep | None
    chop_after: int
    shape_of: dict[str, Any] | None = None

    def config_at(self, step: int) -> ModelConfig:
        """What a state with `step` updates behind it computes."""
        config = families.translate(self.raw_config)[1]
        if self.keep is None or step < self.chop_after:
            return config
        return config.keep(self.keep)

    def settings_at(self, settings: Settings, step: int) -> Settings:
        """How such a state is trained on."""
        chopped = self.keep is not None and step >= self.chop_after
        return settings.after_chop() if chopped else settings

    def record(self) -> dict[str, Any]:
        """For run.json; `from_record` reads it."""
        return dataclasses.asdict(self)


def from_record(record: dict[str, Any]) -> Origin:
    """The origin of a run that is resumed; the parent itself is not needed again."""
    keep = record["keep"]
    return Origin(**(record | {"keep": None if keep is None else tuple(keep)}))


def find_origin(settings: Settings) -> tuple[Origin, Description | None]:
    """The parent that the settings name, without reading a weight; no description for scratch.

    Raises UserError where it is not what the settings ask of it: the layers that stay, the matrices
    that have adapters."""
    chop = settings.chop
    if settings.scratch:
        _, config = families.translate(settings.scratch)
        keep = _keep(chop, config.num_layers)
        return Origin(SCRATCH, None, dict(settings.scratch), keep, chop.after_steps), None
    description = describe(settings.model, settings.revision or None)
    if settings.adapter.rank:
        target_paths(description.config, settings.adapter)
    keep = _keep(chop, description.config.num_layers)
    source, revision, raw_config = description.source, description.revision, description.raw_config
    if settings.from_scratch:
        shape = _shape(description, keep)
        return Origin(SCRATCH, None, raw_config, keep, chop.after_steps, shape), description
    return Origin(source, revision, raw_config, keep, chop.after_steps), description


def _shape(description: Description, keep: Keep | None) -> dict[str, Any]:
    """Whose shape random weights have, with layers as the first parent's are numbered."""
    before = description.provenance
    total = description.config.num_layers
    parent = {"name": description.source, "revision": description.revision, "num_layers": total}
    kept = list(range(total))
    if before is not None and before["parent"]["name"] != SCRATCH:
        parent, kept = before["parent"], before["kept_layers"]
    return {**parent, "kept_layers": [kept[layer] for layer in (keep or range(total))]}


def _keep(chop: ChopSettings, num_layers: int) -> Keep | None:
    if chop.keep:
        return parse_keep(chop.keep, num_layers)
    return choose(chop.strategy, num_layers, chop.remove) if chop.strategy else None


def write_assets(
    workdir: Path, origin: Origin, description: Description | None, settings: Settings
) -> None:
    """WORKDIR/huggingface and WORKDIR/chopjax_folder.json: what `chopjax export WORKDIR` needs.

    They describe the model that the run ends with: the kept layers alone.
    """
    family, config = families.translate(origin.raw_config)
    raw_config, provenance = origin.raw_config, description.provenance if description else None
    if origin.keep is not None:
        raw_config = chop_config(raw_config, family, origin.keep)
    if settings.from_scratch:
        provenance = None  # no weight is the parent's
    elif origin.keep is not None:
        provenance = compose(
            provenance,
            origin.name,
            origin.revision,
            config.num_layers,
            settings.chop.strategy or "keep",
            dataclasses.asdict(settings.chop),
            origin.keep,
        )
    if description is not None and not settings.from_scratch:
        say_decoded(description.weights)
    if description is None:
        assets = expanded(settings.tokenizer)
        if not assets.is_dir():
            raise UserError(f"tokenizer: {assets} is not a folder")
        naming, metadata = usual_naming(family), {"format": "pt"}
    else:
        assets, naming, metadata = description.folder, description.naming, description.metadata
    with new_assets(workdir) as folder:
        write_own(
            folder,
            assets,
            raw_config,
            naming,
            None,
            metadata,
            provenance,
            origin.name,
            origin.revision,
        )


def run_record(
    settings: Settings,
    origin: Origin,
    fingerprints: dict[str, str | None],
    stores: dict[str, Any],
    step: int,
    tokens: int,
    base: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """run.json: all that a resumed run must agree with, and where it stood. base: what adapters
    stand on (base.py). teacher: see teacher.py."""
    return ({} if base is None else {"base": base}) | {
        "chopjax_version": __version__,
        "step": step,
        "tokens": tokens,
        "num_layers": origin.config_at(step).num_layers,
        "kept_layers": None if origin.keep is None else list(origin.keep),
        "origin": origin.record(),
        "teacher": teacher,
        "fingerprints": fingerprints,
        "stores": stores,
        "config": dataclasses.asdict(settings),
    }
