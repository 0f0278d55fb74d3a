"""The product with a weight matrix: jax's own derivative, in another order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from chopjax.models import decoder
from chopjax.models import linear as linears
from chopjax.models.adapted import Adapted
from chopjax.models.compute import Compute
from chopjax.models.config import Layer, ModelConfig, Norm, Rope
from chopjax.models.head import Head, logits
from chopjax.models.linear import linear
from chopjax.models.mesh import BATCH_AXES, make_mesh, scatters_gradients
from chopjax.plan import topology as topologies
from chopjax.plan.collectives import collect
from chopjax.plan.hlo import parse


@pytest.mark.parametrize(
    ("equation", "x", "kernel", "contracted"),
    [
        ("BTD,DF->BTF", (2, 5, 6), (6, 7), 1),
        ("BTD,DNH->BTNH", (2, 5, 6), (6, 2, 3), 1),
        ("BTNH,NHD->BTD", (2, 5, 2, 3), (2, 3, 6), 2),
    ],
)
@pytest.mark.parametrize("on_processors", [True, False], ids=["processor", "accelerator"])
@pytest.mark.parametrize("frozen", [False, True])
def test_value_and_gradients_are_einsum_s(
    monkeypatch, equation, x, kernel, contracted, on_processors, frozen
):
    monkeypatch.setattr(linears, "on_processors", lambda: on_processors)
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (x, kernel))
    product = linears.frozen_product if frozen else linear
    got, back = jax.vjp(lambda x, k: product(x, k, contracted), x, kernel)
    want, wanted_back = jax.vjp(lambda x, k: jnp.einsum(equation, x, k), x, kernel)
    d_y = jnp.asarray(random.normal(size=want.shape), jnp.float32)
    d_x, d_kernel = wanted_back(d_y)
    wanted = (want, d_x, np.zeros_like(d_kernel) if frozen else d_kernel)
    for a, b in zip((got, *back(d_y)), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def half_back(x: jax.Array, kernel: jax.Array, d_y: jax.Array, contracted: int) -> jax.Array:
    return jax.vjp(lambda kernel: linear(x, kernel, contracted), kernel)[1](d_y)[0]


@pytest.mark.parametrize(
    ("equation", "x", "kernel", "contracted"),
    [
        ("RBTD,RBTF->RDF", (5, 6), (6, 7), 1),
        ("RBTD,RBTNH->RDNH", (5, 6), (6, 2, 3), 1),
        ("RBTNH,RBTD->RNHD", (5, 2, 3), (2, 3, 6), 2),
    ],
)
def test_kernel_gradients_of_bfloat16_are_rounded_once(equation, x, kernel, contracted):
    """Whole numbers, whose sums are exact; with an axis of repetitions in front, as jax.vmap and a
    scan over layers have them."""
    random = np.random.default_rng(0)
    shapes = (4, 2, *x), (4, *kernel), (4, 2, 5, *kernel[contracted:])
    x, kernel, d_y = (jnp.asarray(random.integers(-9, 9, s), jnp.bfloat16) for s in shapes)
    exact = np.einsum(equation, np.asarray(x, np.float64), np.asarray(d_y, np.float64))

    def layer(carry: None, rows: Any) -> tuple[None, jax.Array]:
        x, kernel, d_y = rows
        return carry, half_back(x, kernel, d_y, contracted)

    for found in (
        jax.jit(jax.vmap(half_back, (0, 0, 0, None)), static_argnums=3)(x, kernel, d_y, contracted),
        jax.lax.scan(layer, None, (x, kernel, d_y))[1],
    ):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_kernel_gradients_of_bfloat16_are_not_made_of_float32():
    """Where the processor multiplies bfloat16 at all, as the forward product shows."""
    shapes = (128, 32), (32, 48), (128, 48)
    x, kernel, d_y = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    forward = str(jax.jit(linear).lower(x, kernel).compile().as_text())
    lowered = jax.jit(half_back, static_argnames="contracted").lower(x, kernel, d_y, contracted=1)
    back = str(lowered.compile().as_text())
    assert " dot(" in forward
    assert " dot(" in back
    if "f32[128,32]" in forward:
        pytest.skip("this processor multiplies float32 alone")
    assert not any(wide in back for wide in ("f32[128,32]", "f32[32,128]", "f32[128,48]"))


@given(tiles=st.integers(1, 1000), beyond=st.sampled_from([0, 0, 0, 64]))
def test_pieces_of_a_width(tiles: int, beyond: int):
    width = tiles * linears.TILE + beyond
    sizes = linears.pieces(width)
    assert sum(sizes) == width
    if beyond:
        assert sizes == [width]
        return
    for size in sizes:
        number = size // linears.TILE
        assert number * linears.TILE == size
        for factor in (2, 3, 5, 7, 11, 13, 17, 19, 23):
            while number % factor == 0:
                number //= factor
        assert number == 1


@pytest.mark.parametrize(("outputs", "inputs"), [(43, 6), (6, 43), (43, 29), (29, 43)])
def test_a_gradient_in_pieces_is_the_same(monkeypatch, outputs, inputs):
    monkeypatch.setattr(linears, "on_processors", lambda: False)
    monkeypatch.setattr(linears, "TILE", 1)
    random = np.random.default_rng(0)
    shapes = (2, 5, inputs), (inputs, outputs), (2, 5, outputs)
    x, kernel, d_y = (jnp.asarray(random.integers(-9, 9, shape), jnp.float32) for shape in shapes)
    whole: list[jax.Array] = []
    pieces: list[jax.Array] = []
    for gradients, here in ((whole, False), (pieces, True)):
        monkeypatch.setattr(linears, "scatters_gradients", lambda here=here: here)
        back = jax.vjp(linear, x, kernel)[1]
        gradients += back(d_y)
        assert ("concatenate" in str(jax.make_jaxpr(back)(d_y))) == here
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("inputs", "outputs"), [("D", "F"), ("F", "D")])
def test_the_tpu_s_compiler_scatters_gradients(inputs: str, outputs: str):
    """Of Llama-2-7B's feed-forward, whose width it would not split, over a part of the chips."""
    mesh = make_mesh(data=4, fsdp=64, devices=topologies.devices(topologies.parse("v5e:16x16")))
    sizes = {"D": 4096, "F": 11008}
    kernel = P(*("fsdp" if axis == "D" else None for axis in (inputs, outputs)))

    def array(*shape: int, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    x, d_y = (array(4096, sizes[axis], spec=P(BATCH_AXES)) for axis in (inputs, outputs))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        step = jax.jit(
            lambda x, kernel, d_y: jax.vjp(linear, x, kernel)[1](d_y)[1],
            out_shardings=NamedSharding(mesh, kernel),
        )
        program = step.lower(x, array(sizes[inputs], sizes[outputs], spec=kernel), d_y).compile()
    along = {each.kind: each for each in collect(parse(str(program.as_text())), mesh.shape)}
    assert along["reduce-scatter"].axes == ("fsdp",)
    assert along["reduce-scatter"].payload == 2 * 4096 * 11008
    # What is left to add up between the copies is the part of a chip.
    assert along["all-reduce"].payload == 2 * 4096 * 11008 // 64


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    ("sizes", "scattered"),
    [
        ({"data": 4, "fsdp": 64}, True),
        ({"data": 1, "fsdp": 256}, False),
        ({"data": 1, "fsdp": 16, "tensor": 16}, False),
    ],
)
def test_where_gradients_are_scattered(sizes: dict[str, int], scattered: bool):
    mesh = make_mesh(**sizes, devices=topologies.devices(topologies.parse("v5e:16x16")))
    assert not scatters_gradients()  # without a mesh
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert scatters_gradients() == scattered


@struct.dataclass
class HalfPlusPair:
    """A kernel in bfloat16 with a low-rank addition, as an adapter's node would be."""

    kernel: jax.Array
    left: jax.Array
    right: jax.Array

    def product(self, x: jax.Array, contracted: int) -> jax.Array:
        pair = linear(linear(x, self.left, contracted), self.right)
        return linear(x, self.kernel, contracted) + pair


def test_a_weight_node_stands_where_the_kernel_would() -> None:
    """In a scanned stack: the same hidden states as its product written out, and gradients that
    reach its parts."""
    layers, norm = (Layer(rope=Rope()),) * 3, Norm("rms", 1e-5)
    config = ModelConfig(
        "llama", 31, 8, layers, 2, 2, 4, 16, 32, norm, "silu", True, gated_mlp=True
    )
    params = decoder.init(config, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    kernel = params["blocks"]["mlp"]["up"].astype(jnp.bfloat16)
    left, right = jax.random.normal(keys[0], (3, 8, 2)), jax.random.normal(keys[1], (3, 2, 16))
    written_out = kernel.astype(jnp.float32) + left @ right
    tokens = jnp.arange(12).reshape(2, 6)

    def hidden(up: object) -> jax.Array:
        changed = params["blocks"] | {"mlp": params["blocks"]["mlp"] | {"up": up}}
        return decoder.hidden_states(
            params | {"blocks": changed}, config, Compute(remat="dots"), tokens
        )

    node = HalfPlusPair(kernel, left, right)
    np.testing.assert_allclose(hidden(node), hidden(written_out), atol=1e-5)
    d_node = jax.grad(lambda up: hidden(up)[..., 0].sum())(node)
    d_kernel = jax.grad(lambda up: hidden(up)[..., 0].sum())(written_out)
    np.testing.assert_allclose(d_node.left, d_kernel @ right.swapaxes(1, 2), atol=1e-4)
    np.testing.assert_allclose(d_node.right, left.swapaxes(1, 2) @ d_kernel, atol=1e-4)


def adapted(x: jax.Array, base: jax.Array) -> jax.Array:
    (inputs, outputs), dtype = base.shape, jnp.float32
    a, b = jnp.ones((inputs, 2), dtype), jnp.ones((2, outputs), dtype)
    return linear(x, Adapted(base, a, b, None, 1.0, 0.0))


@pytest.mark.parametrize("wide", [True, False], ids=["kernel turned", "x turned"])
@pytest.mark.parametrize("product", [linear, adapted])
def test_the_backward_pass_keeps_the_precision(product: Any, wide: bool) -> None:
    """float32 is full float32 on TPUs, in the gradients too."""
    x, kernel = jnp.ones((3, 4)), jnp.ones((4, 9 if wide else 2))

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return product(x, kernel).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 2
    assert all("HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("backend", "devices", "sums"),
    [("cpu", "cpu", "float32"), ("cpu", "tpu", "bfloat16"), ("tpu", "cpu", "bfloat16")],
    ids=["a processor", "a plan for TPUs on a processor", "a TPU"],
)
def test_processors_alone_are_asked_for_float32_sums(monkeypatch, backend, devices, sums) -> None:
    """Of bfloat16: an accelerator's program does not change for their sake."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    device = jax.sharding.AbstractDevice("", 1, devices)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    half = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((3, 4), (4, 5), (3, 5))]

    def back(x: jax.Array, kernel: jax.Array, d_y: jax.Array) -> object:
        y, turned = jax.vjp(linear, x, kernel)
        return y, turned(d_y)

    with jax.sharding.use_abstract_mesh(mesh):
        text = str(jax.make_jaxpr(back)(*half))
    assert text.count("dot_general") == 3
    assert text.count(f"preferred_element_type={sums}") == 3


def test_a_frozen_base_of_bfloat16_is_multiplied_as_such() -> None:
    """In the backward pass, too: jax's own rule would make it float32 there, and float32 products
    take up to four times as long."""
    x, base = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
    back = jax.jit(jax.grad(lambda x: adapted(x, base).sum().astype(float)))
    text = back.lower(x).as_text()
    assert "tensor<4x5xbf16>" in text
    assert "tensor<4x5xf32>" not in text


@pytest.mark.parametrize("shape", [(9, 300), (1, 300), (1, 1, 300)], ids=str)
def test_float32_sums_are_rounded_once(shape: tuple[int, ...]) -> None:
    """To what the exact product of the bfloat16 numbers is rounded to."""
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=s), jnp.bfloat16) for s in (shape, (300, 7)))
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_array_equal(jax.jit(linear)(x, kernel), exact.astype(jnp.bfloat16))


@given(data=st.data())
@settings(max_examples=20)
def test_few_rows_are_multiplied_in_parts(data: st.DataObject) -> None:
    """One for each processor, where the inputs divide by them."""
    inputs = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=2))
    outputs = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))
    rows = data.draw(st.sampled_from([(), (1,), (1, 1), (2,), (3, 1)]))
    cores = data.draw(st.integers(1, 6))
    random = np.random.default_rng(0)
    shapes = (*rows, *inputs), (*inputs, *outputs)
    # Whole numbers, so that sums are exact in any order.
    x, kernel = (random.integers(-9, 9, shape).astype(np.float32) for shape in shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linears, "processors", lambda: cores)
        made = linear(jnp.asarray(x), jnp.asarray(kernel), len(inputs))
    np.testing.assert_array_equal(made, np.tensordot(x, kernel, len(inputs)))


def test_as_many_parts_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "processors", lambda: 6)
    for inputs, parts in ((320, 5), (96, 3), (31, 1)):
        x, kernel = jnp.ones((1, 1, inputs)), jnp.ones((inputs, 7))
        assert f"f32[{parts},7]" in str(jax.make_jaxpr(linear)(x, kernel))


@pytest.mark.parametrize("tied", [False, True], ids=["kernel", "tied table"])
def test_one_row_of_bfloat16_has_company(tied: bool) -> None:
    """By itself it is multiplied with a float32 copy of the kernel."""
    x = jax.ShapeDtypeStruct((1, 1, 300), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((300, 7), jnp.bfloat16)

    def head(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return logits(Head(kernel, tied=tied), x)

    for function in (linear, head):
        made = jax.make_jaxpr(function)(x, kernel)
        assert "bf16[2,300]" in str(made)
        assert made.out_avals[0].shape == (1, 1, 7)
