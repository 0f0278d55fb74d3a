"""Which model writes drafts: another checkpoint, or some layers of the model itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.identity import model_hashes
from chopjax.chop.configurations import STRATEGIES, choose
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError, did_you_mean
from chopjax.keep import Keep, parse_layers, ranges
from chopjax.models.formats import Kind
from chopjax.score.drafting import MOST, Draft, check_model, of_layers, of_model
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine


@dataclasses.dataclass(frozen=True)
class DraftChoice:
    """As the flags say it: a model, a keep list, or a strategy by name and how many layers go."""

    model: str | None = None
    keep: str | None = None
    strategy: str | None = None
    remove: str | None = None

    def check(self) -> None:
        """Raises UserError for what does not go together."""
        if (self.strategy is None) != (self.remove is None):
            raise UserError("--draft-strategy and --draft-remove go together")
        flags = ("--draft", "--draft-keep", "--draft-strategy")
        values = (self.model, self.keep, self.strategy)
        named = [flag for flag, value in zip(flags, values, strict=True) if value is not None]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)}: one draft at a time")
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise UserError(
                f"--draft-strategy {self.strategy}: not one of {', '.join(STRATEGIES)}"
                f"{did_you_mean(self.strategy, STRATEGIES)}; what is measured `chopjax analyze` "
                "tells, for --draft-keep"
            )

    @property
    def given(self) -> bool:
        return any(one is not None for one in (self.model, self.keep, self.strategy))


@dataclasses.dataclass(frozen=True)
class FoundDraft:
    """A draft that fits a model, whose weights are not read yet.

    name: for people. model: another checkpoint; None: layers of the model itself, `keep`.
    """

    name: str
    model: Description | None
    keep: Keep = ()

    def open(
        self, engine: Engine, fsdp: int = 1, tensor: int = 1, weights: Kind | None = None
    ) -> Draft:
        """For the model of an engine. fsdp, tensor: how that lies on the devices. weights: what its
        matrices, and another draft's, are quantized to."""
        if self.model is None:
            return of_layers(engine, self.keep)
        dtype = engine.compute.dtype
        _, other = open_engine(self.model, None, dtype, None, None, fsdp, tensor, weights)
        return of_model(engine, other)

    def identity(self) -> Mapping[str, Any]:
        """What drawn text depends on: files by content, or layers."""
        if self.model is None:
            return {"keep": list(self.keep)}
        return {"files": model_hashes(self.model)}


def find_draft(choice: DraftChoice, model: Description, tokenizer: str) -> FoundDraft:
    """No weight is read. tokenizer: the fingerprint of the model's. Raises UserError for another
    tokenizer, for a vocabulary or a context that does not fit, and for layers that the model does
    not have."""
    depth = model.config.num_layers
    if choice.model is not None:
        other = describe(choice.model, quantized=True)
        if load_tokenizer(other.folder).fingerprint != tokenizer:
            raise UserError(
                f"--draft {choice.model}: it has another tokenizer than the model; a draft writes "
                "the model's tokens"
            )
        check_model(model.config, model.config.max_positions, other.config)
        return FoundDraft(choice.model, other)
    if choice.keep is not None:
        keep = parse_layers("--draft-keep", choice.keep, depth)
    else:
        assert choice.strategy is not None
        assert choice.remove is not None
        keep = choose(choice.strategy, depth, choice.remove)
    return FoundDraft(f"layers {ranges(keep)} of {depth}", None, keep)


def parse_length(text: str) -> int | None:
    """--draft-length: tokens of a draft, None for auto. Raises UserError for anything else."""
    if text == "auto":
        return None
    if text not in map(str, range(1, MOST + 1)):
        raise UserError(f"--draft-length {text}: from 1 to {MOST}, or auto")
    return int(text)
