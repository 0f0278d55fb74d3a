"""Every parameter of every family has a place on the mesh, or an error that names it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec

from chopjax.errors import UserError
from chopjax.models import families, mesh, parameters

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 8, "attention_bias": True, "mlp_bias": True},
    "llama tied": {"tie_word_embeddings": True},
    "gpt2": {},
    "opt": {},
    "mixtral": {},
    "opt 350m": {"word_embed_proj_dim": 512, "hidden_size": 1024, "num_attention_heads": 16},
}


def config_of(name: str) -> Any:
    raw = {"model_type": name.split()[0]} | FAMILIES[name]
    return families.translate(raw)[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_one_spec_without_collision(name):
    config = config_of(name)
    shape = {"slice": 2, "data": 2, "fsdp": 4, "tensor": 4}
    found = mesh.specs(config, shape)
    sizes = parameters.shapes(config)
    assert found.keys() == sizes.keys()
    for path, spec in found.items():
        used = [axis for axis in spec if axis is not None]
        assert len(used) == len(set(used)), path
        for size, axis in zip(sizes[path], spec, strict=True):
            assert axis is None or size % shape[axis] == 0, path


def test_specs_of_a_llama():
    found = mesh.specs(config_of("llama"), {"slice": 1, "data": 1, "fsdp": 2, "tensor": 2})
    assert found["embed/embedding"] == PartitionSpec("tensor", "fsdp")
    assert found["blocks/attention/query"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert found["blocks/attention/output"] == PartitionSpec(None, "tensor", None, "fsdp")
    assert found["blocks/mlp/down"] == PartitionSpec(None, "tensor", "fsdp")
    assert found["head/kernel"] == PartitionSpec("fsdp", "tensor")


def test_every_letter_of_the_layout_has_a_rule():
    letters = {
        letter
        for name in FAMILIES
        for dims in parameters.axes(config_of(name)).values()
        for letter in dims.split()
    }
    assert letters <= mesh.SHARDING_RULES.keys()
    with pytest.raises(ValueError, match="axis Z has no sharding rule"):
        mesh.partition("L Z", {"L": 1, "Z": 1}, {})


def test_one_mesh_axis_twice_is_an_error():
    with pytest.raises(ValueError, match="axis F would take mesh axis tensor a second time"):
        mesh.partition("N F", {"N": 4, "F": 4}, {"tensor": 2})


def test_sizes_that_do_not_divide_are_all_named():
    config = dataclasses.replace(config_of("llama"), num_heads=6, num_kv_heads=6, mlp_dim=10)
    with pytest.raises(UserError) as caught:
        mesh.specs(config, {"slice": 1, "data": 1, "fsdp": 3, "tensor": 4})
    message = str(caught.value)
    for part in (
        "axis D of size 4096 does not divide by mesh axis fsdp of size 3: embed/embedding, ",
        "blocks/mlp/up",
        "axis N of size 6 does not divide by mesh axis tensor of size 4: ",
        "blocks/attention/query_bias",
    ):
        assert part in message


def test_few_key_heads_and_an_odd_vocabulary_stay_whole():
    config = dataclasses.replace(config_of("llama"), num_kv_heads=1, vocab_size=50_257)
    found = mesh.specs(config, {"slice": 1, "data": 1, "fsdp": 1, "tensor": 2})
    assert found["blocks/attention/key"] == PartitionSpec(None, "fsdp", None, None)
    assert found["embed/embedding"] == PartitionSpec(None, "fsdp")
    assert found["blocks/attention/query"] == PartitionSpec(None, "fsdp", "tensor", None)


def test_make_mesh_fills_the_open_axis():
    fake = list(range(8))

    class Device:
        platform = "cpu"

        def __init__(self, number: int):
            self.id = number

    devices = [Device(n) for n in fake]
    with pytest.raises(UserError, match="fsdp 3"):
        mesh.make_mesh(fsdp=3, devices=devices)
    with pytest.raises(UserError, match="one of them may be -1"):
        mesh.make_mesh(data=-1, fsdp=-1, devices=devices)
    with pytest.raises(UserError, match="one of them may be -1"):
        mesh.make_mesh(tensor=0, devices=devices)
    made = mesh.make_mesh()
    assert made.axis_names == mesh.AXES
    assert made.shape["data"] == len(jax.devices())
    assert set(made.axis_types) == {jax.sharding.AxisType.Auto}


def test_the_line_for_people_names_what_stays_whole():
    config = dataclasses.replace(config_of("llama"), num_kv_heads=1)
    fake = jax.sharding.AbstractMesh((1, 1, 2, 2), mesh.AXES)
    line = mesh.describe(config, fake)
    assert line == "mesh: fsdp 2 x tensor 2; K of 1 stays whole on the tensor axis"


def test_axes_are_the_product_of_the_documented_ones():
    assert list(itertools.chain(mesh.BATCH_AXES, ["tensor"])) == list(mesh.AXES)


CACHED = """
import os
import jax
from chopjax.models import mesh

found = []
jax.monitoring.register_event_listener(
    lambda event, **_: found.append(event) if event.endswith("/cache_hits") else None
)

def run():
    jax.clear_caches()
    jax.jit(lambda x: x + 1)(1.0)
    return len(os.listdir(os.environ["JAX_COMPILATION_CACHE_DIR"])), len(found)

mesh.make_mesh(devices=jax.devices()[:1])
run()
kept, read = run()
assert kept and read
mesh.make_mesh()
jax.jit(lambda x: x + 2)(1.0)
assert run() == (kept, read)
"""


def test_on_several_processors_no_program_is_kept_or_read_back(tmp_path: Path) -> None:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_NUM_CPU_DEVICES": "2",
    }
    command = [sys.executable, "-c", CACHED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
