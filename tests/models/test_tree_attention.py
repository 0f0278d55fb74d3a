"""The tree kernel, interpreted, beside the same mask as numbers."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from chopjax.models import decoder, tree_attention, tree_blocks
from chopjax.models.compute import Attention, Compute
from chopjax.models.families import translate
from chopjax.models.masked_attention import attend_visible, choose_masked
from chopjax.models.mesh import BATCH_AXES, make_mesh
from chopjax.models.scores import PLAIN, Scores
from chopjax.models.tree_attention import LayerPast, Tree, attend_tree, why_not_tree
from chopjax.plan.gpus import answer_for_the_gpu
from chopjax.plan.topology import devices, parse, prepare_environment
from chopjax.score.engine import Engine
from chopjax.score.layout import Budget
from chopjax.score.model import why_plain

T, S, K, G, H = 24, 16, 2, 2, 8


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the TPU would run it, in blocks of 8 where rows are longer than that."""
    call = functools.partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(pl, "pallas_call", call)
    monkeypatch.setattr(tree_attention, "BLOCKS", (8,))


def ends_of(random: np.random.Generator, length: int) -> np.ndarray:
    """Trees in preorder, one after the other, with branches of branches."""
    ends = np.arange(1, length + 1)

    def grow(start: int, stop: int) -> None:
        while start < stop:
            end = int(random.integers(start, stop)) + 1
            ends[start] = end
            grow(start + 1, end)
            start = end

    grow(0, length)
    return ends


def arrays(random: np.random.Generator, rows: int, past_rows: int) -> tuple[Any, Any]:
    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    row = draw(rows, T, K * G, H), draw(rows, T, K, H), draw(rows, T, K, H)
    if not past_rows:
        return row, None
    filled = jnp.asarray(random.random((past_rows, S)) < 0.6).at[0].set(past_rows == 1)
    keys, values = draw(past_rows, S, K, H), draw(past_rows, S, K, H)
    return row, LayerPast(keys, values, filled, jnp.zeros((past_rows, S), jnp.int32))


@pytest.mark.parametrize("past_rows", [0, 1, 3], ids=["no past", "shared", "one a row"])
@pytest.mark.parametrize("scores", [PLAIN, Scores(scale=0.6, cap=1.1)], ids=["plain", "cap"])
def test_the_same_as_the_mask(past_rows: int, scores: Scores):
    """Of three rows, one is plain text; of pasts of their own, the first is empty."""
    random = np.random.default_rng(0)
    (query, key, value), past = arrays(random, 3, past_rows)
    ends = np.stack([ends_of(random, T), ends_of(random, T), np.full(T, T)])
    assert len(set(ends[0])) > 4
    tree = Tree(jnp.asarray(ends, jnp.int32))
    got = attend_tree(query, key, value, tree, past, scores)
    places = jnp.zeros((1, T), jnp.int32)
    want = attend_visible(query, key, value, tree.visible(T), places, past, scores)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_plain_text_needs_no_ends():
    (query, key, value), _ = arrays(np.random.default_rng(1), 2, 0)
    whole = Tree(jnp.full((2, T), T, jnp.int32))
    np.testing.assert_array_equal(
        attend_tree(query, key, value, Tree(), None, PLAIN),
        attend_tree(query, key, value, whole, None, PLAIN),
    )
    np.testing.assert_array_equal(Tree().visible(T), whole.visible(T)[:1])


def test_half_precision_weighs_in_float32():
    row, past = arrays(np.random.default_rng(2), 2, 1)
    query, key, value = (x.astype(jnp.bfloat16) for x in row)
    past = past._replace(
        key_BSKH=past.key_BSKH.astype(jnp.bfloat16), value_BSKH=past.value_BSKH.astype(jnp.bfloat16)
    )
    for before in (None, past):
        got = attend_tree(query, key, value, Tree(), before, PLAIN)
        assert got.dtype == jnp.bfloat16
        mask = jnp.broadcast_to(Tree().visible(T), (2, T, T))
        places = jnp.zeros((1, T), jnp.int32)
        want = attend_visible(query, key, value, mask, places, before)
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), atol=2e-2)


CONFIG = translate(
    {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    }
)[1]


@pytest.mark.parametrize("way", ["tree", "tiles"])
def test_the_scorer_answers_the_same(monkeypatch: pytest.MonkeyPatch, way: str):
    """Rows of trees, and a trunk that many requests begin with."""
    monkeypatch.setattr(tree_attention, "BLOCKS", (32,))
    monkeypatch.setattr(tree_blocks, "BLOCK", 24)
    # Different ones, so that jax does not find what it traced for the other way.
    config = dataclasses.replace(CONFIG, max_positions=200 + len(way))
    params = decoder.init(config, jax.random.key(0))
    trunk = [n % 60 for n in range(1, 65)]
    requests = [(np.array([*trunk, n // 4, 7]), np.array([n, 1, 2])) for n in range(40)]

    def answers(attention: Attention) -> list[tuple[float, bool]]:
        # Lengths that are multiples of the blocks; a trunk pays with few requests.
        budget = Budget(tokens=128, shortest=32, batch=1, shape=100)
        compute = Compute(attention=attention)
        engine = Engine(config, params, compute, budget=budget)
        found = engine.loglikelihood(requests)
        assert engine.statistics.programs == 2
        return found

    taken = []

    def choose(tree: Tree | None, length: int, past: int, *_: Any) -> tuple[str, None]:
        taken.append(past)
        assert tree is not None
        return way, None

    monkeypatch.setattr(decoder, "choose_masked", choose)
    plain = answers("xla")  # asks for neither
    assert not taken
    got = answers("auto")
    assert set(map(bool, taken)) == {True, False}
    np.testing.assert_allclose(
        [total for total, _ in got], [total for total, _ in plain], atol=2e-5
    )
    assert [greedy for _, greedy in got] == [greedy for _, greedy in plain]


def test_who_takes_what(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree_attention, "BLOCKS", (512, 256, 128))
    shape = (512, 0, jnp.dtype(jnp.bfloat16), 64, PLAIN, False)
    tree = Tree(jnp.zeros((1, 512), jnp.int32))
    assert choose_masked(tree, *shape) == ("plain", None)  # a processor's own way
    for backend, seen, way, reason in (
        ("tpu", tree, "tree", None),
        ("tpu", None, "plain", "the mask is not that of a tree"),
        ("gpu", tree, "tree", None),
        ("gpu", Tree(), "cudnn", None),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr("chopjax.models.attention._cudnn_head", lambda backend: 128)
        assert choose_masked(seen, *shape) == (way, reason)
    half = jnp.dtype(jnp.bfloat16)
    assert choose_masked(Tree(), 512, 64, half, 64, PLAIN, False) == ("tree", None)
    for shape, reason in (
        ((512, 0, half, 64, PLAIN, True), "cudnn has no windows that are data"),
        ((512, 0, half, 64, Scores(cap=50.0), False), "cudnn has no capped scores"),
        ((512, 0, jnp.dtype(jnp.float32), 64, PLAIN, False), "cudnn takes bfloat16, not float32"),
        ((65, 0, half, 64, PLAIN, False), "cudnn takes a mask over even numbers of positions"),
        ((64, 33, half, 64, PLAIN, False), "cudnn takes a mask over even numbers of positions"),
    ):
        assert choose_masked(tree, *shape) == ("tiles", reason)


def test_the_scorer_says_why_it_is_plain(monkeypatch: pytest.MonkeyPatch):
    windowed = dataclasses.replace(
        CONFIG, layers=(dataclasses.replace(CONFIG.layers[0], window=8),)
    )
    assert why_plain(windowed, "bfloat16") is None  # a processor has no kernel to miss
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert why_plain(CONFIG, "bfloat16") is None
    assert why_plain(windowed, "bfloat16") == "the tree kernel has no windows"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("chopjax.models.attention._cudnn_head", lambda backend: 128)
    assert why_plain(CONFIG, "bfloat16") is None
    assert why_plain(CONFIG, "float32") == "cudnn takes bfloat16, not float32"


@pytest.mark.parametrize(
    ("length", "past", "scores", "windows", "backend", "reason"),
    [
        (192, 0, PLAIN, False, "tpu", None),
        (640, 1536, Scores(cap=50.0), False, "tpu", None),
        (600, 0, PLAIN, False, "tpu", "takes up to 512 positions or multiples of 128"),
        (512, 1000, PLAIN, False, "tpu", "takes up to 512 positions or multiples of 128"),
        (512, 0, PLAIN, True, "tpu", "has no windows"),
        (512, 0, Scores(slopes=(0.5,)), False, "tpu", "has no ALiBi"),
        (512, 0, PLAIN, False, "gpu", "runs on TPUs, this is a gpu"),
    ],
)
def test_what_the_kernel_does_not_take(
    monkeypatch, length: int, past: int, scores: Scores, windows: bool, backend: str, reason
):
    monkeypatch.setattr(tree_attention, "BLOCKS", (512, 256, 128))
    found = why_not_tree(length, past, scores, windows, backend)
    assert found == (reason and f"the tree kernel {reason}")


@pytest.mark.parametrize(
    ("topology", "compiler", "backend", "call"),
    [
        ("v5e:2x2", "libtpu", "tpu", "tpu_custom_call"),
        ("h100:4", "jax_cuda12_plugin", "gpu", "__cudnn$fmhaScaleBiasSoftmax"),
    ],
    ids=["v5e", "h100"],
)
def test_the_compiler_takes_it(
    monkeypatch: pytest.MonkeyPatch, topology: str, compiler: str, backend: str, call: str
):
    """Rows and heads over four chips, behind a trunk that all rows share: nothing travels."""
    pytest.importorskip(compiler)
    monkeypatch.undo()  # not interpreted
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for asked in ("check_cudnn_version", "check_compute_capability"):  # to be as they were
        monkeypatch.setattr(cudnn, asked, getattr(cudnn, asked))
    answer_for_the_gpu()
    prepare_environment()
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=devices(parse(topology)))

    whole, rows = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def array(*shape: int, dtype: Any = jnp.bfloat16, spec: PartitionSpec = whole) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def attend(query: Any, key: Any, value: Any, ends: Any, *past: Any) -> jax.Array:
        return attend_tree(query, key, value, Tree(ends), LayerPast(*past), PLAIN)

    own = (array(4, 192, heads, 64, spec=rows) for heads in (4, 2, 2))
    trunk = array(1, 256, 2, 64), array(1, 256, 2, 64)
    slots = array(1, 256, dtype=jnp.bool_), array(1, 256, dtype=jnp.int32)
    ends = array(4, 192, dtype=jnp.int32, spec=rows)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = jax.jit(attend).lower(*own, ends, *trunk, *slots).compile()
    text = program.as_text() or ""
    assert text.count(call) >= 2
    assert not re.search("all-gather|all-reduce|all-to-all|collective", text)
