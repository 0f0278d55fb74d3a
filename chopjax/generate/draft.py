"""Which model writes drafts: another checkpoint, or some layers of the model itself."""

from __future__ import annotations

import dataclasses

from chopjax.chop.configurations import STRATEGIES, choose
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError, did_you_mean
from chopjax.keep import parse_layers, ranges
from chopjax.models.formats import Kind
from chopjax.score.drafting import Draft, of_layers, of_model
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


def open_draft(
    choice: DraftChoice,
    engine: Engine,
    fingerprint: str,
    fsdp: int = 1,
    tensor: int = 1,
    weights: Kind | None = None,
) -> tuple[str, Draft]:
    """Its name for people, and the draft. fingerprint: of the model's tokenizer. fsdp, tensor: how
    the model lies on the devices. weights: what its matrices, and another draft's, are quantized
    to. Raises UserError for another tokenizer, and for layers that the model does not have."""
    depth = engine.config.num_layers
    if choice.model is not None:
        dtype = engine.compute.dtype
        loaded, other = open_engine(
            choice.model, dtype=dtype, fsdp=fsdp, tensor=tensor, weights=weights
        )
        if load_tokenizer(loaded.folder).fingerprint != fingerprint:
            raise UserError(
                f"--draft {choice.model}: it has another tokenizer than the model; a draft writes "
                "the model's tokens"
            )
        return choice.model, of_model(engine, other)
    if choice.keep is not None:
        keep = parse_layers("--draft-keep", choice.keep, depth)
    else:
        assert choice.strategy is not None
        assert choice.remove is not None
        keep = choose(choice.strategy, depth, choice.remove)
    return f"layers {ranges(keep)} of {depth}", of_layers(engine, keep)
