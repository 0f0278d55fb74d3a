"""NVIDIA GPUs by name, "h100:8": what they do, how they are wired, and the compiler's view of them.

A node has eight, joined by NVLink; nodes are joined by one network port a GPU.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError, first_line
from chopjax.hardware import PEAK_BFLOAT16

NODE = 8
SMALLER = (1, 2, 4)  # of a node, less than all
LARGEST = 4096  # GPUs; a guard against slips of the keyboard
MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = 0.75  # that jax takes of a GPU's memory unless told otherwise
CUDNN = (9, 10, 0)  # what the program is compiled for
ASSUMPTIONS = (
    "operations run one after the other, each as long as its matrix products or its bytes take",
    "matrix products run at the GPU's dense bfloat16 peak, and no other arithmetic counts",
    "HBM, NVLink and the network move data at their peak rates",
    "collectives run one after the other, and beside the operations where they are started ahead",
    "where the program waits for a collective, what is left of it adds to the step",
    "between nodes every GPU has a network port of its own",
    "cuDNN computes the tiles of scores that the mask shows and no others",
    "kernels are what the compiler takes untried; on the GPU it times them, and may take others",
    "the host and the input pipeline keep up; evaluation and checkpoints are not counted",
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU. Bandwidths in bytes per second, one way where a wire has two ways.

    Sources: NVIDIA's data sheets of H100 SXM and H200 SXM (bandwidths; NVLink 4 is given both ways)
    and of DGX H100 and H200 (a 400 Gbps network port for each GPU). hbm is what the driver shows.
    """

    name: str
    kind: str  # as the driver spells it
    flops: float  # bfloat16 peak without sparsity, FLOP/s
    hbm: int  # bytes
    hbm_bandwidth: float
    link_bandwidth: float  # NVLink
    network_bandwidth: float

    @property
    def usable_hbm(self) -> int:
        """Bytes that a program may take: jax's share of the memory, as it is set here."""
        text = os.environ.get(MEMORY_FRACTION, DEFAULT_FRACTION)
        try:
            fraction = float(text)
        except ValueError:
            raise UserError(f"{MEMORY_FRACTION}={text}: a number is needed") from None
        return int(self.hbm * min(fraction, 1.0))


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="h100",
            kind="NVIDIA H100 80GB HBM3",
            flops=PEAK_BFLOAT16["NVIDIA H100"],
            hbm=84_942_979_072,
            hbm_bandwidth=3352e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
        ),
        Gpu(
            name="h200",
            kind="NVIDIA H200",
            flops=PEAK_BFLOAT16["NVIDIA H200"],
            hbm=150_754_820_096,
            hbm_bandwidth=4800e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """GPUs of one node, or of several whole ones; `slices` times."""

    chip: Gpu
    gpus: int
    slices: int = 1

    @property
    def name(self) -> str:
        one = f"{self.chip.name}:{self.gpus}"
        return f"{self.slices} x {one}" if self.slices > 1 else one

    @property
    def chips(self) -> int:
        return self.gpus * self.slices

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / NODE) * self.slices

    @property
    def accelerator_type(self) -> str:
        nodes = f"{self.nodes} nodes" if self.nodes > 1 else "one node"
        return f"{self.chip.kind}, {nodes}"

    def seconds(self, wire: int, axes: tuple[str, ...], mesh_shape: Mapping[str, int]) -> float:
        """Of a collective that sends so many bytes from each GPU, over groups along these axes.

        As NCCL lays its rings: within a node over NVLink; between nodes, each of a node's GPUs that
        are in the group carries its part through its own port.
        """
        strides = [math.prod(list(mesh_shape.values())[i + 1 :]) for i in range(len(mesh_shape))]
        group = [0]
        for (axis, size), stride in zip(mesh_shape.items(), strides, strict=True):
            if axis in axes:
                group = [first + stride * place for first in group for place in range(size)]
        a_node = self.chips // self.nodes
        ports = sum(device < a_node for device in group)  # those that lie in the first node
        seconds = wire / self.chip.link_bandwidth
        if ports < len(group):
            seconds = max(seconds, wire / (ports * self.chip.network_bandwidth))
        return seconds


def parse_gpus(name: str, slices: int = 1) -> Cluster | None:
    """ "h100:8" → Cluster; None for what is no GPU's name. Raises UserError for a number of GPUs
    that fills no nodes."""
    match = re.fullmatch(r"(\w+):(\d{1,6})", name.strip().lower())
    if match is None or match[1] not in GPUS:
        return None
    count = int(match[2])
    if count not in SMALLER and not (count and count % NODE == 0 and count <= LARGEST):
        raise UserError(
            f"--topology {name}: write 1, 2 or 4 GPUs of one node, or whole nodes of {NODE}: "
            f"{match[1]}:8, {match[1]}:16, … {match[1]}:{LARGEST}"
        )
    return Cluster(GPUS[match[1]], count, slices)


def gpu_devices(cluster: Cluster) -> list[Any]:
    """Devices that programs can be compiled for and nothing can run on.

    Raises UserError where jax's plugin for CUDA is not installed.
    """
    import jax
    from jax.experimental import topologies

    shape = f"{cluster.nodes}x1x{cluster.chips // cluster.nodes}"
    config = target_config(cluster.chip)
    try:
        found = topologies.get_topology_desc("", "cuda", topology=shape, target_config=config)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {cluster.name}: {first_line(error)}") from error
    except NotImplementedError as error:
        raise UserError(
            f"--topology {cluster.name}: jax's compiler for CUDA is not installed: pip install "
            f"jax-cuda12-plugin=={jax.__version__} (or 'chopjax[gpu-plan]'); it needs no GPU, no "
            "CUDA and no driver"
        ) from error
    return list(found.devices)


def target_config(gpu: Gpu) -> str:
    """What XLA's compiler asks about a GPU of the Hopper generation (GpuTargetConfigProto as text):
    NVIDIA's tuning guide for Hopper and the CUDA programming guide's table for compute capability
    9.0. clock_rate_ghz is the boost clock."""
    major, minor, patch = CUDNN
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {round(gpu.hbm_bandwidth)}
  device_memory_size: {gpu.hbm}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
device_description_str: "{gpu.kind}"
"""


def answer_for_the_gpu() -> None:
    """From here on jax lowers calls of cuDNN in this process without a GPU.

    It asks cuDNN for its version and the GPU for its generation, at once and whatever a program is
    compiled for; there is no argument for that.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    major, minor, patch = CUDNN
    asked: Any = cudnn
    asked.check_cudnn_version = lambda: 10_000 * major + 100 * minor + patch
    asked.check_compute_capability = lambda capability: float(capability) <= 9.0
