"""The units' scores beside plain torch, with hooks and autograd on transformers' models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers

from chopjax.checkpoint.open import open_checkpoint
from chopjax.chop.calibration import make_batches
from chopjax.narrow.walk import loss, unit_scores

# Family → the modules of a block that read what heads and hidden units give.
READERS = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "phi3": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
}
# Those that read what the two norms of a block give.
NORMED = dict.fromkeys(("qwen3", "gemma2"), ("self_attn.q_proj", "mlp.up_proj"))
NORMED["opt"] = ("self_attn.q_proj", "fc1")
N, K, LAYERS = 4, 2, 2
TWO: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": LAYERS},
    "qwen3": {"num_hidden_layers": LAYERS, "layer_types": ["full_attention", "sliding_attention"]},
}


def sequences() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(1, 97, length).tolist() for length in (9, 4, 7)]


def peer(folder: Path) -> tuple[Any, Sequence[Any]]:
    """The model, and its blocks."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    )
    blocks, stack = checkpoints.blocks_of(model.eval())
    return model, getattr(blocks, stack)


def activations(folder: Path, family: str) -> list[dict[str, torch.Tensor]]:
    """Minitron's: mean over the sequence, L2 over the batch; a group's is the sum of its heads'."""
    model, blocks = peer(folder)
    found = []
    for block in blocks:
        heads: list[torch.Tensor] = []
        mlp: list[torch.Tensor] = []

        def of_heads(module: Any, inputs: Any, heads: list[Any] = heads) -> None:
            heads.append(inputs[0].unflatten(-1, (N, -1)).norm(dim=-1)[0].mean(dim=0))

        def of_mlp(module: Any, inputs: Any, mlp: list[Any] = mlp) -> None:
            mlp.append(inputs[0].abs().reshape(-1, inputs[0].shape[-1]).mean(dim=0))

        for name, hook in zip(READERS[family], (of_heads, of_mlp), strict=True):
            block.get_submodule(name).register_forward_pre_hook(hook)
        normed: list[list[torch.Tensor]] = []
        for name in NORMED[family]:
            normed.append([])

            def of_norm(module: Any, inputs: Any, means: list[Any] = normed[-1]) -> None:
                means.append(inputs[0].abs().reshape(-1, inputs[0].shape[-1]).mean(dim=0))

            block.get_submodule(name).register_forward_pre_hook(of_norm)
        found.append((heads, mlp, normed))
    with torch.no_grad():
        for ids in sequences():
            model(torch.tensor([ids]), use_cache=False)
    return [
        {
            "heads": torch.stack(heads).norm(dim=0).reshape(groups(family), -1).sum(dim=1),
            "mlp": torch.stack(mlp).norm(dim=0),
            "embed": torch.stack([torch.stack(means).norm(dim=0) for means in normed]).sum(dim=0),
        }
        for heads, mlp, normed in found
    ]


def groups(family: str) -> int:
    return N if family in ("gpt2", "opt") else K


def mean_loss(model: Any) -> torch.Tensor:
    total, count = torch.zeros(()), 0
    for ids in sequences():
        logits = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.tensor(ids[1:]), reduction="sum"
        )
        count += len(ids) - 1
    return total / count


def gradients(folder: Path, family: str) -> list[dict[str, torch.Tensor]]:
    """LLM-Pruner's: Σ|w·∂L/∂w| over the rows and columns of a group, summed over the matrices."""
    model, blocks = peer(folder)
    mean_loss(model).backward()

    def of(block: Any, name: str) -> torch.Tensor:
        weight = block.get_submodule(name).weight
        product = (weight * weight.grad).abs()
        return product.T if family == "gpt2" else product  # [out, in]

    def summed(product: torch.Tensor, units: int) -> torch.Tensor:
        return product.reshape(units, -1).sum(dim=1)

    found = []
    for block in blocks:
        output, down = (of(block, name).T for name in READERS[family])
        if family == "phi3":
            head = len(output) // N
            qkv = of(block, "self_attn.qkv_proj")
            inner = [*qkv.split([N * head, K * head, K * head]), output]
            hidden = [*of(block, "mlp.gate_up_proj").chunk(2), down]
        elif family == "gpt2":
            inner = [*of(block, "attn.c_attn").chunk(3), output]
            hidden = [of(block, "mlp.c_fc"), down]
        elif family == "opt":
            inner = [*(of(block, f"self_attn.{x}_proj") for x in "qkv"), output]
            hidden = [of(block, "fc1"), down]
        else:
            inner = [*(of(block, f"self_attn.{x}_proj") for x in "qkv"), output]
            hidden = [of(block, "mlp.gate_proj"), of(block, "mlp.up_proj"), down]
        count = groups(family)
        heads = torch.stack([summed(x, count) for x in inner]).sum(dim=0)
        mlp = torch.stack([summed(x, len(down)) for x in hidden]).sum(dim=0)
        embed = torch.stack([x.sum(dim=0) for x in [*inner, *hidden]]).sum(dim=0)
        found.append({"heads": heads, "mlp": mlp, "embed": embed})
    return found


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", "gradient"),
        ("phi3", "gradient"),  # fused matrices
        ("gpt2", "gradient"),  # Conv1D
        ("qwen3", "activation"),
        ("gemma2", "activation"),  # layers of two kinds, norms around
        ("opt", "activation"),
    ],
)
def test_scores_are_those_of_plain_torch(family: str, method: str, tmp_path: Path) -> None:
    layers = TWO.get(family, {"num_hidden_layers": LAYERS})
    checkpoints.write_checkpoint(tmp_path / "p", family, **layers)
    checkpoint = open_checkpoint(str(tmp_path / "p"))
    kinds = ("heads", "mlp", "embed")
    # Two batches, the second half empty.
    batches = make_batches(sequences(), 2)
    (tmp_path / "work").mkdir()
    ours = unit_scores(checkpoint, method, batches, kinds, tmp_path / "work")
    theirs = {"activation": activations, "gradient": gradients}[method](tmp_path / "p", family)
    assert len(ours) == len(theirs) == LAYERS
    everywhere = torch.stack([one["embed"] for one in theirs]).sum(dim=0)
    theirs = [one | {"embed": everywhere} for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for kind in kinds:
            np.testing.assert_allclose(one[kind], other[kind].detach().numpy(), rtol=1e-4)


def test_the_loss_is_torchs_and_no_file_but_the_last_stays(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "p", num_hidden_layers=LAYERS)
    checkpoint = open_checkpoint(str(tmp_path / "p"))
    (tmp_path / "work").mkdir()
    ours = loss(checkpoint, make_batches(sequences(), 2), tmp_path / "work", "it")
    with torch.no_grad():
        assert ours == pytest.approx(float(mean_loss(peer(tmp_path / "p")[0])), abs=1e-5)
    assert [path.name for path in (tmp_path / "work").iterdir()] == [f"states-{LAYERS}.npy"]
