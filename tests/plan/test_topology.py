import pytest

from chopjax.errors import UserError
from chopjax.plan.topology import CHIPS, GIB, devices, parse, prepare_environment
from chopjax.train.devices import PEAK_BFLOAT16


def test_parse():
    topology = parse("v5p:4x4x8", slices=2)
    assert topology.name == "2 x v5p:4x4x8"
    assert topology.chips == 256
    assert parse("V5E:16x16").chips == 256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "write CHIP:SHAPE"),
        ("v9:4x4", "v4, v5e, v5p, v6e"),
        ("v5p:4x4", "has 3 sides, such as 4x4x4"),
        ("v5e:4x4x4", "has 2 sides, such as 16x16"),
        ("v5e:0x4", "2 sides"),
    ],
)
def test_mistakes(name: str, message: str):
    with pytest.raises(UserError, match=message):
        parse(name)


def test_the_table_agrees_with_that_of_mfu():
    for chip in CHIPS.values():
        assert chip.flops == PEAK_BFLOAT16[f"TPU {chip.name}"]
        assert chip.hbm * 0.9 < chip.usable_hbm <= chip.hbm * 1.01


def test_bandwidth_of_rings_and_lines():
    v5p, v5e = parse("v5p:4x4x2"), parse("v5e:16x8")
    assert v5p.ring_bandwidth(frozenset({0})) == 200e9  # both ways round
    assert v5p.ring_bandwidth(frozenset({0, 1})) == 400e9
    assert v5p.ring_bandwidth(frozenset({2})) == 100e9  # two chips are no ring
    assert v5e.ring_bandwidth(frozenset({0})) == 100e9
    assert v5e.ring_bandwidth(frozenset({1})) == 50e9  # 8 of the pod's 16 do not close


@pytest.mark.parametrize(
    "name", ["v4:2x2x2", "v5e:4x4", "v5p:2x2x2", "v6e:2x4", "v5p:4x4x4", "v6e:16x16"]
)
def test_the_compiler_knows_every_chip(name: str):
    pytest.importorskip("libtpu")
    prepare_environment()
    topology = parse(name)
    found = devices(topology)
    assert len(found) == topology.chips
    assert found[0].platform == "tpu"


def test_several_slices():
    pytest.importorskip("libtpu")
    prepare_environment()
    found = devices(parse("v5e:2x2", slices=2))
    assert [device.slice_index for device in found] == [0] * 4 + [1] * 4


def test_a_shape_that_does_not_exist():
    pytest.importorskip("libtpu")
    prepare_environment()
    with pytest.raises(UserError, match="v5p:3x4x5"):
        devices(parse("v5p:3x4x5"))


def test_usable_memory_is_what_the_compiler_says():
    """Programs that cannot fit, and the limit in the refusal."""
    pytest.importorskip("libtpu")
    prepare_environment()
    import re

    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
        topology = parse(name)
        where = SingleDeviceSharding(devices(topology)[0])
        huge = jax.ShapeDtypeStruct((2**19, 2**13), jnp.float32, sharding=where)
        with pytest.raises(Exception, match="RESOURCE_EXHAUSTED") as refusal:
            jax.jit(lambda x: jnp.sin(x @ x.T)).lower(huge).compile()
        limit = re.search(r"available HBM \(([\d.]+)G\)", str(refusal.value))
        assert limit is not None, str(refusal.value)
        assert abs(float(limit[1]) * GIB - topology.chip.usable_hbm) < 0.02 * GIB
