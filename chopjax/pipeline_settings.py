"""Every setting of `chopjax run`, with its default."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from chopjax.errors import UserError, listing
from chopjax.train.settings import ChopSettings, Dtype, read_as
from chopjax.train.settings import Settings as HealSettings


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Text to heal on and to measure on: .txt or .jsonl files; several separated by commas."""

    train: str = ""
    held_out: str = ""
    field: str = "text"  # of a JSON line
    workers: int = 2  # processes that tokenise


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """What parent, chopped and healed model are measured by."""

    tasks: str = ""  # of lm-evaluation-harness, separated by commas; none: perplexity alone
    include_path: str = ""  # folder of further task files (YAML)
    limit: int = 0  # documents a task; 0: all
    num_fewshot: int = -1  # -1: what the task says
    dtype: Dtype = "float32"
    latency_batch: int = 1  # sequences in the forward pass that is timed …
    latency_length: int = 0  # … and tokens in each; 0: the context length, at most 512


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """Parent → score → chop → score → heal → score → export.

    chop: a keep list goes before the strategy, so that it can be given on top of a recipe.
    """

    model: str = ""  # the parent: a Hugging Face folder or hub id
    revision: str = ""  # of a hub id
    text: TextSettings = TextSettings()
    chop: ChopSettings = ChopSettings(strategy="input", remove="0.5")
    heal: HealSettings = HealSettings()  # its model, chop and data folders are filled in
    score: ScoreSettings = ScoreSettings()


def default_config() -> ConfigDict:
    """The base of every pipeline recipe. Unknown fields are refused."""
    config = ConfigDict(dataclasses.asdict(PipelineSettings()), convert_dict=True)
    # What the pipeline decides cannot be set.
    del config.heal.model, config.heal.revision, config.heal.scratch, config.heal.tokenizer
    del config.heal.chop, config.heal.data.train, config.heal.data.evaluation
    return config.lock()


def read(config: ConfigDict) -> PipelineSettings:
    """Check a config and freeze it. Raises UserError that lists everything that is wrong."""
    problems: list[str] = []
    settings = read_as(PipelineSettings, config.to_dict(), "", problems)
    if not problems:
        problems = _contradictions(settings)
    if problems:
        raise UserError(f"the config does not hold together:\n{listing(problems)}")
    return settings


def _contradictions(settings: PipelineSettings) -> list[str]:
    chop, text, score = settings.chop, settings.text, settings.score
    checks = [
        (bool(settings.model), "model: the parent is missing (a Hugging Face folder or hub id)"),
        (bool(text.train), "text.train: the text to heal on is missing"),
        (bool(text.held_out), "text.held_out: text to measure on is missing"),
        (
            bool(chop.keep or chop.strategy),
            "chop: give chop.keep, or chop.strategy and chop.remove",
        ),
        (text.workers >= 1, f"text.workers is {text.workers}: at least 1 is needed"),
        (score.limit >= 0, f"score.limit is {score.limit}: not below 0"),
        (score.latency_batch >= 1, "score.latency_batch: at least 1 is needed"),
        (score.latency_length >= 0, "score.latency_length: not below 0"),
    ]
    return [message for holds, message in checks if not holds]
