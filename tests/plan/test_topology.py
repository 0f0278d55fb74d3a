import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.plan.topology import CHIPS, GIB, Topology, devices, parse


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
        ("v5e:0x4", "v5e has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:2x8", "there is no such slice"),
        ("v5e:16x8", "write v5e:8x16"),
        ("v5p:8x4x4", "write v5p:4x4x8"),
        ("v5p:3x4x5", "v5p has 2x2x1, 2x2x2, 2x2x4, 2x4x4 and every AxBxC of multiples of 4"),
        ("v5p:16x20x28", "up to 6,144 chips"),
        ("v5p-100", "N = 8, 16, 32, 64, or a multiple of 128 up to 12288"),
        ("v5p-7", "there is no such slice"),
        ("v5p-0", "there is no such slice"),
        ("v6e-2", r"v6e-N with N = 1, 4, 8, 16, 32, 64, 128, 256"),
        ("v5p-" + "9" * 5000, "accelerator type"),
        ("v9-8", "v4-N, v5litepod-N, v5p-N, v6e-N"),
    ],
)
def test_mistakes(name: str, message: str):
    with pytest.raises(UserError, match=message):
        parse(name)


@pytest.mark.parametrize(
    ("cloud", "ours"),
    [
        # As gcloud lists them: cores on v4 and v5p, chips on the others.
        ("v4-8", "v4:2x2x1"),
        ("v4-64", "v4:2x4x4"),
        ("v4-1536", "v4:8x8x12"),
        ("v4-4096", "v4:8x16x16"),
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5e-128", "v5e:8x16"),
        ("v6e-8", "v6e:2x4"),
        ("v5p-32", "v5p:2x2x4"),
        ("V5P-128", "v5p:4x4x4"),
        ("v5p-384", "v5p:4x4x12"),
        ("v5p-1152", "v5p:4x12x12"),
        ("v5p-1280", "v5p:4x8x20"),
        ("v5p-2944", "v5p:4x4x92"),
        ("v5p-3072", "v5p:8x12x16"),
        ("v5p-3456", "v5p:12x12x12"),
        ("v5p-4480", "v5p:4x20x28"),
        ("v5p-12288", "v5p:16x16x24"),
    ],
)
def test_cloud_s_names(cloud: str, ours: str):
    assert parse(cloud) == parse(ours)
    assert parse(ours).accelerator_type == cloud.lower().replace("v5e-", "v5litepod-")


@given(st.sampled_from(sorted(CHIPS)), st.integers(1, 96))
def test_every_accelerator_type_has_a_shape_that_exists(chip: str, cubes: int):
    name = f"{chip}-{64 * cubes * CHIPS[chip].counts}"
    if 64 * cubes > CHIPS[chip].largest or (CHIPS[chip].dimensions == 2 and cubes not in (1, 2, 4)):
        with pytest.raises(UserError, match="there is no such slice"):
            parse(name)
        return
    topology = parse(name)
    assert topology.chips == 64 * cubes
    assert parse(topology.name) == topology


def test_programs_may_take_nearly_all_memory():
    for chip in CHIPS.values():
        assert chip.hbm * 0.9 < chip.usable_hbm <= chip.hbm * 1.01


def test_bandwidth_of_rings_and_lines():
    v5p, v5e = Topology(CHIPS["v5p"], (4, 4, 2)), Topology(CHIPS["v5e"], (16, 8))
    assert v5p.ring_bandwidth(frozenset({0})) == 200e9  # both ways round
    assert v5p.ring_bandwidth(frozenset({0, 1})) == 400e9
    assert v5p.ring_bandwidth(frozenset({2})) == 100e9  # two chips are no ring
    assert v5e.ring_bandwidth(frozenset({0})) == 100e9
    assert v5e.ring_bandwidth(frozenset({1})) == 50e9  # 8 of the pod's 16 do not close


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    "name", ["v4:2x2x2", "v5e:4x4", "v5p:2x2x2", "v6e:2x4", "v5p:4x4x4", "v6e:16x16"]
)
def test_the_compiler_knows_every_chip(name: str):
    topology = parse(name)
    found = devices(topology)
    assert len(found) == topology.chips
    assert found[0].platform == "tpu"


@pytest.mark.usefixtures("libtpu")
def test_several_slices():
    found = devices(parse("v5e:2x2", slices=2))
    assert [device.slice_index for device in found] == [0] * 4 + [1] * 4


@pytest.mark.usefixtures("libtpu")
def test_a_shape_that_the_compiler_does_not_know():
    with pytest.raises(UserError, match="v5p:3x4x5"):
        devices(Topology(CHIPS["v5p"], (3, 4, 5)))


@pytest.mark.usefixtures("libtpu")
def test_usable_memory_is_what_the_compiler_says():
    """Programs that cannot fit, and the limit in the refusal."""
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
