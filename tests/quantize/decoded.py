"""What a quantized checkpoint holds, by the definition of its format, in plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of so many bits from int32 words, made signed."""
    shifts = torch.arange(0, 32, bits)
    codes = (words[..., None].long() >> shifts) & (2**bits - 1)
    return (codes.reshape(len(words), -1) - 2 ** (bits - 1)).float()


def dense_of(out: Path, folder: Path) -> Path:
    """The checkpoint of the values that a quantized one's codes stand for."""
    folder.mkdir()
    config = json.loads((out / "config.json").read_text())
    bits = config.pop("quantization_config")["config_groups"]["group_0"]["weights"]["num_bits"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(out / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        scales, module = tensors.pop(name), name.removesuffix("weight_scale")
        if (words := tensors.pop(f"{module}weight_packed", None)) is None:
            codes = tensors[f"{module}weight"].float()
        else:
            _, reads = tensors.pop(f"{module}weight_shape").tolist()
            codes = unpacked(words, bits)[:, :reads]
        wide = codes.reshape(*scales.shape, -1) * scales.float()[..., None]
        tensors[f"{module}weight"] = wide.reshape(codes.shape).to(scales.dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
