"""Targets of tests/faults.py: Hugging Face checkpoints of all families, and imported ones."""

from __future__ import annotations

import functools
import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from faults import (
    FILE_FAULTS,
    JSON_FAULTS,
    ODD,
    Command,
    Fault,
    Target,
    dump,
    odd_value,
    on_bytes,
    succeed,
)

from chopjax.models import families, parameters
from chopjax.models.families.table import bind, usual_naming

VOCAB = 260
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 256,
    "eos_token_id": 256,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "dtype": "float32",
    "eos_token_id": 256,
}
OPT = {
    "model_type": "opt",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "do_layer_norm_before": True,
    "word_embed_proj_dim": 16,
    "activation_function": "relu",
    "eos_token_id": [256, 0],
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_slow": 1}
CONFIGS: list[dict[str, Any]] = [
    LLAMA,
    LLAMA | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    LLAMA | {"num_hidden_layers": 1, "rope_scaling": {"type": "linear", "factor": 2.0}},
    LLAMA | {"rope_scaling": _LLAMA3, "dtype": "bfloat16", "head_dim": 8},
    LLAMA | {"rope_parameters": _YARN | {"rope_theta": 5e5}, "quantization_config": None},
    GPT2,
    GPT2 | {"n_layer": 1, "tie_word_embeddings": False},
    OPT,
    OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8, "num_hidden_layers": 2},
]


@functools.cache
def _tokenizer() -> tuple[tuple[str, str], ...]:
    """Files of a byte-level tokenizer: 256 bytes and <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    return (
        ("tokenizer.json", tokenizer.to_str()),
        ("tokenizer_config.json", json.dumps(said, indent=1)),
        ("generation_config.json", json.dumps({"eos_token_id": 256, "do_sample": True}, indent=1)),
    )


def _tensors(raw: dict[str, Any], both: bool) -> dict[str, np.ndarray]:
    family, config = families.translate(raw)
    sizes, random_ = parameters.sizes(config), np.random.default_rng(0)
    tensors = {
        b.source: (0.1 * random_.standard_normal(b.row.source_shape(sizes))).astype(np.float32)
        for b in bind(family, config, usual_naming(family))
    }
    if both and config.tie_embeddings:
        tensors["lm_head.weight"] = tensors[usual_naming(family).embedding_names[0]]
    return tensors


def make_checkpoint(thing: Path, rng: random.Random) -> None:
    """Any family, whole or in shards, with tokenizer and sometimes a record of a chop."""
    raw = dict(rng.choice(CONFIGS))
    tensors = _tensors(raw, both=rng.random() < 0.2)
    (thing / "config.json").write_text(json.dumps(raw, indent=1))
    for name, text in _tokenizer():
        (thing / name).write_text(text)
    (thing.parent / "text.txt").write_text("the cat sat on the mat. " * 20)
    if rng.random() < 0.5:
        safetensors.numpy.save_file(tensors, thing / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(tensors)
        where: dict[str, str] = {}
        for part in range(2):
            file = f"model-{part + 1:05}-of-00002.safetensors"
            some = {name: tensors[name] for name in names[part::2]}
            safetensors.numpy.save_file(some, thing / file, {"format": "pt"})
            where |= dict.fromkeys(some, file)
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (thing / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    if rng.random() < 0.3:
        layers = families.translate(raw)[1].num_layers
        parent = {"name": "parent", "revision": None, "num_layers": layers + 1}
        step = {
            "parent": parent,
            "strategy": "keep",
            "settings": {},
            "kept_layers": [*range(layers)],
        }
        record = step | {"chopjax_version": "0", "history": [step]}
        (thing / "chopjax.json").write_text(json.dumps(record, indent=1))


# -------------------------------------------------------------------- faults of safetensors files


def on_header(change: Callable[[dict[str, Any], random.Random], Any]) -> Fault:
    """A fault that rewrites a safetensors header and its length."""

    def rewrite(raw: bytes, rng: random.Random) -> bytes:
        (length,) = struct.unpack("<Q", raw[:8])
        header = change(json.loads(raw[8 : 8 + length]), rng)
        text = dump(header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    return on_bytes(rewrite, ".safetensors")


def _entry(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    return header[rng.choice([name for name in header if name != "__metadata__"])]


def _header_length(raw: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    lengths = [0, 1, length - 1, length + 1, len(raw), 10**8, 10**8 + 1, 2**63, 2**64 - 1]
    return struct.pack("<Q", rng.choice(lengths)) + raw[8:]


def _offsets(header: dict[str, Any], rng: random.Random) -> Any:
    first, second = _entry(header, rng), _entry(header, rng)
    moved = rng.choice([-8, -1, 1, 8, 2**40, 2**64])
    kind = rng.randrange(3)
    if kind == 0:
        first["data_offsets"] = second["data_offsets"]
    else:
        first["data_offsets"] = [
            at + moved * (kind == 1 or n) for n, at in enumerate(first["data_offsets"])
        ]
    return header


def _shape(header: dict[str, Any], rng: random.Random) -> Any:
    entry = _entry(header, rng)
    shape = entry["shape"]
    entry["shape"] = rng.choice(
        [shape[::-1], [*shape, 1], [], [0], [*shape, 0], [10**30], [2**63, 2], [1] * 10_000,
         [10**4000], [*shape[:-1], shape[-1] * 2], [-shape[0], -1]]
    )  # fmt: skip
    return header


def _dtype(header: dict[str, Any], rng: random.Random) -> Any:
    entry = _entry(header, rng)
    entry["dtype"] = rng.choice(
        ["F16", "BF16", "I32", "U8", "F4", "F8_E8M0", "C64", "BOOL", "f32", "", "F32\x1b", *ODD]
    )
    return header


def _layers(change: Callable[[Any], Any]) -> Fault:
    """A fault of the number of layers alone."""

    def fault(thing: Path, rng: random.Random) -> str | None:
        path = thing / "config.json"
        raw = json.loads(path.read_text())
        key = "n_layer" if raw["model_type"] == "gpt2" else "num_hidden_layers"
        path.write_text(dump(raw | {key: change(rng)}))
        return key

    return fault


def _odd_config(thing: Path, rng: random.Random) -> str | None:
    """Odd values in config.json alone, where most decisions are made."""
    path = thing / "config.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    for _ in range(rng.randint(1, 3)):
        raw = odd_value(raw, rng)
    path.write_bytes(dump(raw).encode("utf-8", "surrogatepass"))
    return "config.json"


ROPE_KEYS = (
    "rope_type type factor rope_theta beta_fast beta_slow attention_factor mscale mscale_all_dim "
    "original_max_position_embeddings low_freq_factor high_freq_factor truncate "
    "partial_rotary_factor"
).split()


def _odd_rope(thing: Path, rng: random.Random) -> str | None:
    path = thing / "config.json"
    raw = json.loads(path.read_text())
    if raw["model_type"] != "llama":
        return None
    kind = rng.choice(["linear", "llama3", "yarn", "dynamic", "default"])
    rope = {"rope_type": kind, "factor": 4.0}
    numbers = [0, -1, 0.5, 1, 2, 32, 1e-300, 1e300, *ODD]
    for _ in range(rng.randint(1, 4)):
        rope[rng.choice(ROPE_KEYS)] = rng.choice(numbers)
    raw[rng.choice(["rope_scaling", "rope_parameters"])] = rope
    path.write_bytes(dump(raw).encode("utf-8", "surrogatepass"))
    return f"{kind}"


def _index(change: Callable[[dict[str, str], random.Random], Any]) -> Fault:
    """A fault of the weight map of a checkpoint in shards."""

    def fault(thing: Path, rng: random.Random) -> str | None:
        path = thing / "model.safetensors.index.json"
        if not path.exists():
            return None
        index = json.loads(path.read_text())
        change(index["weight_map"], rng)
        path.write_bytes(dump(index).encode("utf-8", "surrogatepass"))
        return path.name

    return fault


def _index_elsewhere(where: dict[str, Any], rng: random.Random) -> None:
    names = [
        *("../secret/model.safetensors", "/etc/passwd", "nowhere.safetensors", "", ".", "a\\b"),
        *("config.json", "model-00001-of-00002.safetensors", "x\x00", "x" * 5000, "[red]"),
        *ODD,
    ]
    some = rng.choice(names)
    for name in rng.sample(sorted(where), rng.choice([1, len(where)])):
        where[name] = some


CHECKPOINT_FAULTS: dict[str, Fault] = {
    **FILE_FAULTS,
    **JSON_FAULTS,
    "odd config": _odd_config,
    "odd rope": _odd_rope,
    "layers": _layers(lambda rng: rng.choice([0, 1, 2, 4, 10**6, 10**7, 10**18, 10**400, -3])),
    "header length": on_bytes(_header_length, ".safetensors"),
    "header value": on_header(odd_value),
    "header name": on_header(
        lambda header, rng: (
            header | {rng.choice(["x" * 100_000, "\x1b[31m", "[/b]", "", "é"]): _entry(header, rng)}
        )
    ),
    "header entry dropped": on_header(
        lambda header, rng: {k: v for k, v in header.items() if rng.random() < 0.9}
    ),
    "offsets": on_header(_offsets),
    "shape": on_header(_shape),
    "dtype": on_header(_dtype),
    "metadata": on_header(lambda header, rng: header | {"__metadata__": rng.choice(ODD)}),
    "index entry missing": _index(lambda where, rng: where.pop(rng.choice(sorted(where)))),
    "index entry extra": _index(
        lambda where, rng: where.update({rng.choice(["x", "\x1b", "y" * 99999]): "z.safetensors"})
    ),
    "index elsewhere": _index(_index_elsewhere),
}


def _import_all() -> None:
    """What the commands import, without starting jax's backend."""
    from chopjax.checkpoint import export, load  # noqa: F401
    from chopjax.chop import analysis, stream  # noqa: F401
    from chopjax.score import perplexity  # noqa: F401

    _tokenizer()


# ------------------------------------------------------------------------------ imported ones


@functools.cache
def _imported() -> tuple[Path, ...]:
    """Folders of `chopjax import`, one a config, made once by a fork."""
    import atexit

    root = Path(tempfile.mkdtemp(prefix="faults-imported-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folders = []
    for number, raw in enumerate((CONFIGS[1], CONFIGS[5])):
        (root / f"m{number}").mkdir()
        model, out = root / f"m{number}" / "model", root / f"imported{number}"
        model.mkdir()
        make = random.Random(number)
        (model / "config.json").write_text(json.dumps(raw, indent=1))
        tensors = _tensors(raw, both=bool(make.randrange(2)))
        safetensors.numpy.save_file(tensors, model / "model.safetensors", {"format": "pt"})
        for name, text in _tokenizer():
            (model / name).write_text(text)
        succeed("import", model, out)
        folders.append(out)
    return tuple(folders)


def make_import(thing: Path, rng: random.Random) -> None:
    shutil.copytree(rng.choice(_imported()), thing, dirs_exist_ok=True)


def _prepare_imports() -> None:
    _import_all()
    _imported()


TARGETS: dict[str, Target] = {
    "checkpoints": Target(
        make_checkpoint,
        CHECKPOINT_FAULTS,
        [
            Command(("inspect", "{thing}", "--json")),
            Command(("inspect", "{thing}", "--check"), 0.5),
            Command(("chop", "{thing}", "{out}", "--keep", "0", "--json"), 0.7),
            Command(("chop", "{thing}", "{out}", "--strategy", "middle", "--remove", "1"), 0.3),
            Command(("import", "{thing}", "{out}"), 0.04),
            Command(("export", "{thing}", "{out}"), 0.5, after=True),
            Command(("perplexity", "{thing}", "--data", "{folder}/text.txt", "--json"), 0.02),
            Command(
                (
                    "analyze",
                    "{thing}",
                    "--data",
                    "{folder}/text.txt",
                    "--output",
                    "{out}",
                    "--measures",
                    "similarity",
                ),
                0.01,
            ),
        ],
        _import_all,
    ),
    "imports": Target(
        make_import,
        {**FILE_FAULTS, **JSON_FAULTS},
        [
            Command(("inspect", "{thing}", "--json")),
            Command(("export", "{thing}", "{out}"), 0.7),
            Command(("inspect", "{thing}", "--check"), 0.3),
        ],
        _prepare_imports,
    ),
}
