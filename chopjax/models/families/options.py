"""Reading a config.json so that no option is ever ignored in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError, cut, listing

MAX_SIZE = 2**31 - 1  # of an index of JAX's arrays
MAX_LAYERS = 10_000
MAX_NUMBER = 1e30  # float32 holds its square root's inverse, and products of a few of them
SMALL = 1e-30

# Keys that cannot change what the model computes for given tokens at inference: bookkeeping,
# generation defaults, dropout and initialisation. Families add their own.
NEUTRAL = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config
    _name_or_path _num_labels add_bos_token architectures attention_dropout
    attention_probs_dropout_prob
    attn_implementation auto_map begin_suppress_tokens bos_token_id chunk_size_feed_forward
    custom_pipelines decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label
    initializer_range is_llama_config neftune_noise_alpha output_past transformers.js_config
    label2id length_penalty max_length max_sequence_length min_length model_max_length
    model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix prefix_token_id problem_type
    pretraining_tp remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()
)
# Keys that name a computation we do not have; these values mean "not used".
OFF: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "attention_bias": (False, None),
    "bad_words_ids": (None,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "mlp_bias": (False, None),
    "pruned_heads": ({}, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "use_sliding_window": (False, None),
}


class Options:
    """config.json with a memory of what has been asked for."""

    def __init__(
        self, raw: Mapping[str, Any], neutral: str = "", off: Mapping[str, Any] | None = None
    ):
        """neutral: further keys to pass over; off: key → the one value that is supported."""
        self.raw = raw
        self.neutral = NEUTRAL | set(neutral.split())
        self.off = OFF | {key: (value, None) for key, value in (off or {}).items()}
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        """The value; a missing key or null gives the default."""
        self.seen.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def nullable(self, key: str, default: Any = None) -> Any:
        """The value; a missing key gives the default, null stays None."""
        self.seen.add(key)
        return self.raw.get(key, default)

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A whole number of at least 1."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problem = "is missing" if value is None else f"is {shown(value)}"
            self.problems.append(f"{key} {problem}; a whole number of at least 1 is needed")
            return 1
        if value > most:
            self.problems.append(f"{key} is {shown(value)}; at most {most:,} is supported")
            return 1
        return value

    def window(self, key: str, default: int | None) -> int | None:
        """A window in positions; a missing key gives the default, null is none."""
        return None if self.nullable(key, default) is None else self.size(key, default)

    def cap(self, key: str, default: float | None) -> float | None:
        """A bound; a missing key gives the default, null is none."""
        value = self.nullable(key, default)
        return None if value is None else self.number(key, value, above=SMALL)

    def layers(self, key: str, default: int) -> int:
        """The number of layers: whatever has something a layer is then small."""
        return self.size(key, default, MAX_LAYERS)

    def one_size(self, key: str, other: str, default: int, most: int = MAX_SIZE) -> int:
        """A size that stands under one of two keys, or alike under both."""
        said = [name for name in (key, other) if self.get(name) is not None]
        sizes = {self.size(name, default, most) for name in said}
        if len(sizes) > 1:
            self.problems.append(f"{key} is {self.raw[key]} and {other} {self.raw[other]}")
        return next(iter(sizes), default)

    def number(self, key: str, default: float, above: float = -math.inf) -> float:
        """A number that float32 holds, above a bound."""
        value = self.get(key, default)
        # Compared as they are: an integer may be too large to become a float.
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problems.append(f"{key} is {shown(value)}; a number is needed")
            return default
        if not -MAX_NUMBER <= value <= MAX_NUMBER:
            self.problems.append(f"{key} is {shown(value)}; a finite number is needed")
            return default
        if value <= above:
            self.problems.append(f"{key} is {shown(value)}; a number above {above:g} is needed")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.problems.append(f"{key} is {shown(value)}; true or false is needed")
        return bool(value)

    def choice(self, key: str, names: Mapping[str, str], default: str) -> Any:
        """One of several names, translated; any other is refused by name."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in names:
            self.problems.append(f"{key} {shown(value)} is not supported (only {', '.join(names)})")
            return names[default]
        return names[value]

    def token(self, key: str) -> int | None:
        """A special token's id; of a list, the first."""
        value = self.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if first is None:
            return None
        if isinstance(first, bool) or not isinstance(first, int) or not abs(first) <= MAX_SIZE:
            self.problems.append(f"{key} is {shown(value)}; a token's number is needed")
            return None
        return first

    def divide(self, key: str, total: int, parts: int) -> int:
        if total % parts:
            self.problems.append(f"{key}: {total} does not divide by {parts}")
        return max(total // parts, 1)

    def check(self, num_layers: int) -> None:
        """Name as problems the keys that were not asked for."""
        for key, value in self.raw.items():
            if key in self.seen or key in self.neutral:
                continue
            if key == "layer_types" and _is_full_attention(value, num_layers):
                continue  # what every layer of these families is
            if key == "quantization_config" and value is not None:
                self.problems.append(_quantized(value))
            elif key in self.off:
                if value not in self.off[key]:
                    self.problems.append(f"{key} = {shown(value)} is not supported")
            elif value is not None:
                self.problems.append(
                    f"{cut(key, 80)} = {shown(value)} is not an option that chopjax knows"
                )

    def finish(self, num_layers: int) -> None:
        """Raise UserError that lists everything unsupported, by name."""
        self.check(num_layers)
        if self.problems:
            model_type = self.raw.get("model_type")
            raise UserError(
                f"config.json (model_type {model_type}) asks for what chopjax cannot do:\n"
                f"{listing(self.problems)}"
            )


def shown(value: Any) -> str:
    """A value as a message has it."""
    return cut(repr(value), 80)


def _is_full_attention(value: Any, num_layers: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == num_layers
        and all(kind == "full_attention" for kind in value)
    )


def _quantized(value: Any) -> str:
    """What a quantized checkpoint is, and the way out."""
    method = value.get("quant_method") if isinstance(value, dict) else None
    return (
        f"the weights are quantized (quantization_config: {shown(method or value)}), and not as "
        "`chopjax quantize` does it, whose codes chopjax reads: take the checkpoint that it was "
        "made from. `chopjax chop` removes layers from quantized ones, too"
    )
