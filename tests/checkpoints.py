"""Tiny random Hugging Face checkpoints, written by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import torch
import transformers
from flax.traverse_util import unflatten_dict
from transformers.core_model_loading import revert_weight_conversion

from chopjax.models import parameters
from chopjax.models.families import table, translate

# What tokenizers are trained on.
TEXT = """\
Tiny random checkpoints are written by the library itself, and every weight of them is random: the
norms and the biases, too. A model of four layers has learned nothing, so that its numbers are of no
interest but to those who compare two programs that compute them. The cat sat on the mat. The dog
sat on the log. What was tokenized in pieces is put together again, and the longest piece wins:
def folder(path): return path.parent / "checkpoint" for name, weight in model.named_parameters() in
range(0, 1, 2, 3, 4, 5, 6, 7, 8, 9). Is it there? It is; and if it is not, then it never was!
"""
# The least that a Llama can be; "num_hidden_layers" comes on top.
TINY: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def random_model(family: str, seed: int = 0, **options: Any) -> transformers.PreTrainedModel:
    """A model of transformers with every weight random, norms and biases too, in float32."""
    config = transformers.AutoConfig.for_model(family, **(families.SIZES[family] | options))
    config.bos_token_id = config.eos_token_id = 0
    config.pad_token_id = None  # OPT would zero that row of the table
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = weight.ndim == 1 and name.endswith("weight")
            # Where transformers starts a norm: at 1, or at 0 if it adds 1.
            weight.copy_(weight + 0.1 * noise if is_norm else noise * (weight.shape[-1] ** -0.5))
    return model.eval()


def blocks_of(model: Any) -> tuple[Any, str]:
    """The module that holds the list of blocks, and the list's name in it."""
    return next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, torch.nn.ModuleList)
    )


def in_memory(model: transformers.PreTrainedModel, raw: dict[str, Any]) -> tuple[Any, Any]:
    """ModelConfig and parameters through the weight table, straight from a model in memory."""
    family, config = translate(raw)
    # Experts lie fused in its memory, and one by one in files.
    as_saved = revert_weight_conversion(model, model.state_dict())
    tensors = {name: tensor.detach().numpy() for name, tensor in as_saved.items()}
    if config.tie_embeddings:
        for name in family.heads:
            tensors.pop(f"{name}.weight", None)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = table.match(family, config, shapes, "model in memory")
    size = parameters.sizes(config)
    flat: dict[str, Any] = {}
    for binding in found.bindings:
        arrays = binding.row.to_parameters(tensors[binding.source], size)
        for path, array in zip(binding.row.targets, arrays, strict=True):
            flat.setdefault(path, []).append(array)
    shape = parameters.shapes(config)
    stacked = {path: np.stack(parts).reshape(shape[path]) for path, parts in flat.items()}
    return config, unflatten_dict(stacked, sep="/")


def write_checkpoint(
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    seed: int = 0,
    **options: Any,
) -> Path:
    """Save a random model as transformers would; returns the folder."""
    model: Any = random_model(family, seed, **options)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_tokenizer(folder: Path, vocab_size: int = 97) -> Path:
    """A byte-level BPE tokenizer of at most `vocab_size` pieces, with <|endoftext|> = 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab_size - 8]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    return folder


def write_text(folder: Path, count: int = 40) -> Path:
    """FOLDER/text.jsonl: so many short documents of several lengths, no two alike."""
    path = folder / "text.jsonl"
    lines = [f"Cat {n} sat on {'the mat ' * (n % 5)} of {n * 7}." for n in range(count)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path
