"""GPTQ on one matrix, beside plain torch in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from chopjax.models.formats import FORMATS, Kind, scales_of
from chopjax.quantize.gptq import gptq, way_of
from chopjax.sparsify.compensate import inverse_factor
from chopjax.sparsify.ways import Read

WIDTH, TOKENS = 288, 600  # two blocks, and a rest


def nearest(weight: torch.Tensor, scale: torch.Tensor, kind: Kind) -> torch.Tensor:
    most = FORMATS[kind].largest
    code = (weight / scale).clamp(-most, most)
    code = code.float().to(torch.float8_e4m3fn).double() if kind == "fp8" else code.round()
    return code * scale


def peer(weight: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Column by column of [out, in], with no blocks: what is taken from later ones is at once."""
    weight = weight.clone()
    hessian = 2 / len(x) * x.T @ x
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=x.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    for at in range(weight.shape[1]):
        stays = nearest(weight[:, at], scale[:, at], kind)
        error = (weight[:, at] - stays) / upper[at, at]
        weight[:, at + 1 :] -= error[:, None] * upper[at, at + 1 :]
        weight[:, at] = stays
    return weight


def test_zeros_stay() -> None:
    draw = np.random.default_rng(0)
    weight_IO = draw.normal(size=(64, 9)).astype(np.float32)
    weight_IO[draw.random(weight_IO.shape) < 0.5] = 0
    x_NI = draw.normal(size=(99, 64)) @ draw.normal(size=(64, 64))
    gram_II = (x_NI.T @ x_NI).astype(np.float32)
    read = Read(jnp.asarray(gram_II), inverse_factor(gram_II, 99, "here"))
    made_IO = way_of("int4", 32).change(weight_IO, read, "here")
    assert (made_IO[weight_IO == 0] == 0).all()
    assert (made_IO != 0).mean() > 0.3


@pytest.mark.parametrize(("kind", "block"), [("int4", 32), ("int8", 0), ("fp8", 0)])
def test_it_is_torchs(kind: Kind, block: int) -> None:
    draw = np.random.default_rng(0)
    mixed = draw.normal(size=(TOKENS, WIDTH)) @ draw.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    x_NI = (mixed + 0.3 * draw.normal(size=(TOKENS, WIDTH))) * draw.lognormal(size=WIDTH)
    x_NI[:, 5] = 0
    weight_OI = draw.normal(size=(48, WIDTH)).astype(np.float32)
    scale_OI = np.repeat(scales_of(weight_OI, kind, block), block or WIDTH, axis=1)
    gram_II = (x_NI.T @ x_NI).astype(np.float32)
    factor_II = jnp.asarray(inverse_factor(gram_II, TOKENS, "here"))
    dead_I = jnp.asarray(gram_II.diagonal() == 0)
    made = gptq(jnp.asarray(weight_OI.T), jnp.asarray(scale_OI.T), dead_I, factor_II, kind)
    ours_OI = np.asarray(made, np.float64).T
    wide, scale = torch.tensor(weight_OI).double(), torch.tensor(scale_OI).double()
    theirs_OI = peer(wide, torch.tensor(x_NI), scale, kind).numpy()
    outputs = np.isclose(ours_OI, theirs_OI, rtol=1e-5, atol=1e-7).all(axis=1)
    assert outputs.mean() > 0.9, "a code on the edge changes what follows it"

    def error(new_OI: np.ndarray) -> float:
        return float(np.square(x_NI @ (new_OI - weight_OI).T).sum())

    assert error(ours_OI) == pytest.approx(error(theirs_OI), rel=1e-2)
    assert error(ours_OI) < 0.8 * error(nearest(wide, scale, kind).numpy())
