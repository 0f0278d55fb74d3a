"""What changes the next token of greedy decoding: generation_config.json and a task's arguments.

As lm-evaluation-harness's hf backend, which calls transformers' generate(do_sample=False, …): the
task's generation_kwargs go before generation_config.json; where that file is missing, config.json
stands in for it, and where it is there, config.json has no say. What of it we do not do is refused
by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.source import CONFIG
from chopjax.disk.files import inside, read_json_object
from chopjax.errors import UserError

GENERATION_CONFIG = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How to choose the next token. The processors of transformers that these names come from.

    eos_token_id: ends a text. repetition_penalty: logits of tokens that the prompt or the new text
    has are divided by it where they are positive, else multiplied. suppress_tokens are never
    written, begin_suppress_tokens not as the first, eos_token_id not before min_new_tokens.
    max_new_tokens: goes before what a task says.
    """

    eos_token_id: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    max_new_tokens: int | None = None


# Option → its values without effect on one greedy text; null has none of any. The other options of
# transformers' GenerationConfig are for sampling, for beams, for speed, or for what is returned.
REFUSED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "bad_words_ids": (),
    "constraints": (),
    "dola_layers": (),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "prompt_lookup_num_tokens": (),
    "sequence_bias": (),
    "stop_strings": (),
    "token_healing": (False,),
    "use_mtp": (False,),
    "watermarking_config": (),
}


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The options of generation_config.json of a model's folder, or those in its config.json.

    Raises UserError for a file that is damaged, and for one of our options of another type.
    """
    path = inside(folder, GENERATION_CONFIG) or inside(folder, CONFIG)
    options = read_json_object(path) if path else {}
    read_rules(options, str(path))
    return options


def read_rules(options: Mapping[str, Any], where: str) -> Rules:
    """Raises UserError for a value of the wrong type. where: for the message."""

    def ids(name: str) -> tuple[int, ...]:
        value = options.get(name)
        tokens = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_whole(token) for token in tokens):
            raise UserError(f"{where}: {name} must be token ids, not {_short(value)}")
        return tuple(tokens)

    def count(name: str, least: int) -> int | None:
        value = options.get(name)
        if value is not None and not (_is_whole(value) and value >= least):
            raise UserError(f"{where}: {name} must be a number from {least}, not {_short(value)}")
        return value

    penalty = options.get("repetition_penalty")
    penalty = 1.0 if penalty is None else penalty
    is_number = isinstance(penalty, (int, float)) and not isinstance(penalty, bool)
    if not is_number or not 0 < penalty < 1e30:
        raise UserError(
            f"{where}: repetition_penalty must be a number above 0, not {_short(penalty)}"
        )
    return Rules(
        ids("eos_token_id"),
        float(penalty),
        ids("suppress_tokens"),
        ids("begin_suppress_tokens"),
        count("min_new_tokens", 0) or 0,
        count("max_new_tokens", 1),
    )


def refused(options: Mapping[str, Any]) -> list[str]:
    """Options that would change a greedy text in a way that chopjax does not know."""
    return [
        f"{name}={_short(value)}"
        for name, neutral in REFUSED.items()
        if (value := options.get(name)) is not None and value not in neutral
    ]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:60] + "…"
