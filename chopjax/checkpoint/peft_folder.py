"""The adapters of a training run as the folder that peft loads, beside their base.

    OUT/adapter_config.json, OUT/adapter_model.safetensors
    OUT/base/                 what they were trained on, with its chop: a Hugging Face checkpoint
    OUT/chopjax.json          where both come from

A run without a chop stands on a checkpoint that is there already: adapter_config.json names that.

peft (0.21) holds `lora_A` [r, in] and `lora_B` [out, r] of a module, for GPT-2's transposed
matrices, too. A tensor that holds several of our kernels side by side (query, key and value) is one
module of peft's: its A has the rows of all of them, its B their columns, each where its outputs
stand and zero elsewhere, and so its rank and its alpha are as many times theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from chopjax.checkpoint.describe import AdapterRun, Description, describe, places_of
from chopjax.checkpoint.export import export
from chopjax.checkpoint.orbax_folder import unread_params
from chopjax.checkpoint.provenance import read_provenance, write_provenance
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.unread import check_base, unread
from chopjax.checkpoint.writer import MAX_SHARD_BYTES, Tensor, write_file
from chopjax.disk.atomic import new_folder
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.models import adapter_settings, parameters
from chopjax.models.families.table import Row

BASE = "base"


def export_adapter(
    model: str,
    out: Path,
    step: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> Description:
    """Write the folder. The rest is as in export_model.

    Raises UserError for what is no run with adapters, and for a base that has changed.
    """
    description = describe(model, step=step)
    run = description.weights
    if not isinstance(run, AdapterRun):
        raise UserError(
            f"--adapter is for training runs with adapters (config.adapter.rank); {model} is none"
        )
    if run.masked:
        raise UserError(
            f"{model}: its adapters add nothing where the base is zero (masks=fixed), which peft "
            "cannot say; export it merged, without --adapter"
        )
    check_base(run)
    shapes = adapter_settings.shapes(description.config, run.settings)
    own = flatten_dict(unread_params(run.path, shapes), sep="/")
    adapters = {path: leaf.read() for path, leaf in own.items()}
    out, protect = expanded(out).absolute(), (Path(model), *places_of(description))
    weights = run.base.weights
    stands_alone = run.keep is None and isinstance(weights, Checkpoint) and not weights.decoded
    with new_folder(out, "export", overwrite, protect=protect) as folder:
        if not stands_alone:
            export(
                description.config,
                description.raw_config,
                unread(run.base.weights, run.base.config, run.keep),
                description.folder,
                folder / BASE,
                description.naming,
                provenance=read_provenance(description.folder),
                dtypes=description.dtypes,
                metadata=description.metadata,
                max_shard_bytes=max_shard_bytes,
            )
        modules = _modules(description, adapters)
        name = run.base.name if stands_alone else str(out / BASE)
        revision = run.base.revision if stands_alone else None
        config = _config(run, modules) | {
            "base_model_name_or_path": name,
            "revision": revision,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = [
            Tensor(f"base_model.model.{module}.{part}.weight", "F32", array.shape, array)
            for module, (_, a, b) in modules.items()
            for part, array in (("lora_A", a), ("lora_B", b))
        ]
        write_file(
            folder / "adapter_model.safetensors", tensors, {"format": "pt"}, lambda nbytes: None
        )
        if description.provenance is not None:
            # Other machines know the base by its place beside the adapters.
            where = name if stands_alone else BASE
            write_provenance(folder, description.provenance | {"adapter_base": where})
    return description


# Module → row, A [r, in] and B [out, r].
Modules = dict[str, tuple[Row, np.ndarray, np.ndarray]]


def _modules(description: Description, adapters: dict[str, np.ndarray]) -> Modules:
    family, config = description.family, description.config
    kernels, sizes = parameters.kernels(config), parameters.sizes(config)
    modules: Modules = {}
    for row in family.rows:
        present = [path for path in row.targets if f"{path}/a" in adapters]
        if not present:
            continue
        for layer in range(config.num_layers):
            name = row.source.replace("{p}", family.prefixes[0]).replace("{l}", str(layer))
            all_a, all_b = [], []
            for path in present:
                a, b = adapters[f"{path}/a"][layer], adapters[f"{path}/b"][layer]
                all_a.append(a.reshape(-1, a.shape[-1]).T)
                all_b.append(_outputs(row, path, b, kernels, sizes))
            a = np.ascontiguousarray(np.concatenate(all_a))
            b = np.ascontiguousarray(np.concatenate(all_b, axis=1))
            modules[name.removesuffix(".weight")] = row, a, b
    return modules


def _outputs(row: Row, path: str, b: np.ndarray, kernels: Any, sizes: dict[str, int]) -> np.ndarray:
    """`b` [R, outputs…] as [out, R], its outputs where the row's tensor has them.

    The row says how a kernel becomes a tensor; b is a kernel of R inputs.
    """
    rank = b.shape[0]
    first, *others = kernels[path].inputs
    few = sizes | {first: rank} | dict.fromkeys(others, 1)
    kernels_of_rank = []
    for target in row.targets:
        outputs = tuple(sizes[axis] for axis in kernels[target].outputs)
        own = b if target == path else np.zeros((rank, *outputs), b.dtype)
        kernels_of_rank.append(own.reshape(*(few[axis] for axis in kernels[path].inputs), *outputs))
    tensor = row.to_tensor(kernels_of_rank, few)
    return tensor.T if _is_transposed(row) else tensor


def _is_transposed(row: Row) -> bool:
    """Whether the tensor is [in, out], as GPT-2 has it. A kernel's inputs come first."""
    left, right = row.axes.replace("(", "").replace(")", "").split("->")
    return left.split()[0] == right.split()[0]


def _config(run: AdapterRun, modules: Modules) -> dict[str, Any]:
    settings = run.settings
    alpha = settings.alpha or settings.rank
    below = {name: name.split(".", _depth(name) + 1)[-1] for name in modules}
    ranks = {below[name]: a.shape[0] for name, (_, a, _) in modules.items()}
    wide = {name: rank for name, rank in ranks.items() if rank != settings.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.rank,
        "lora_alpha": alpha,
        "rank_pattern": wide,
        "alpha_pattern": {name: alpha * rank / settings.rank for name, rank in wide.items()},
        "lora_dropout": settings.dropout,
        "target_modules": sorted(ranks),
        "bias": "none",
        "fan_in_fan_out": any(_is_transposed(row) for row, _, _ in modules.values()),
        "inference_mode": True,
    }


def _depth(module: str) -> int:
    """The place of the layer's number in a module's name."""
    return next(place for place, part in enumerate(module.split(".")) if part.isdigit())
