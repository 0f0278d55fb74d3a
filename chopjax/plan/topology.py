"""TPU slices by name, "v5p:4x4x4" or "v5p-128": what their chips do and how they are wired.

GPUs are in gpus.py; `parse` and `devices` know both.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from typing import Any

from chopjax.errors import UserError, first_line
from chopjax.hardware import PEAK_BFLOAT16
from chopjax.plan.gpus import GPUS, Cluster, Gpu, gpu_devices, parse_gpus
from chopjax.plan.slices import described, exists, spelled, usual_shape

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Bandwidths in bytes per second, each way where a wire has two ways.

    Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, the tables of key specifications; they give
    the interconnect both ways and for all links together, the data-centre network per pod, per host
    or per chip. usable_hbm is the limit that libtpu's compiler names when a program is too large.
    """

    name: str
    flops: float  # bfloat16 peak, FLOP/s
    hbm: int  # bytes
    usable_hbm: int  # bytes that a program may take
    hbm_bandwidth: float
    link_bandwidth: float  # of one interconnect link, one way
    network_bandwidth: float  # data-centre network, this chip's share
    dimensions: int  # of the torus; a chip has two links in each
    wraps_at: int  # a side of a multiple of so many chips is a ring, a shorter one is a line
    largest: int  # chips of the largest slice
    cloud_name: str  # in Cloud's accelerator types: CLOUD_NAME-N …
    counts: int = 1  # … where N counts cores, so many a chip, or chips
    cores_fused: bool = False  # two cores act as one device if asked to


CHIPS = {
    chip.name: chip
    for chip in (
        # v4: 2,400 Gbps of interconnect one way over 6 links; 200 Gbps a host of 4 chips.
        Chip(
            name="v4",
            flops=PEAK_BFLOAT16["TPU v4"],
            hbm=32 * GIB,
            usable_hbm=int(30.75 * GIB),
            hbm_bandwidth=1228e9,
            link_bandwidth=50e9,
            network_bandwidth=6.25e9,
            dimensions=3,
            wraps_at=4,
            largest=4096,
            cloud_name="v4",
            counts=2,
            cores_fused=True,
        ),
        # v5e: 400 GB/s both ways over 4 links; 6.4 Tbps a pod of 256 chips.
        Chip(
            name="v5e",
            flops=PEAK_BFLOAT16["TPU v5e"],
            hbm=16 * GIB,
            usable_hbm=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            link_bandwidth=50e9,
            network_bandwidth=3.125e9,
            dimensions=2,
            wraps_at=16,
            largest=256,
            cloud_name="v5litepod",
        ),
        # v5p: 1,200 GB/s both ways over 6 links; 50 Gbps a chip.
        Chip(
            name="v5p",
            flops=PEAK_BFLOAT16["TPU v5p"],
            hbm=95 * GIB,
            usable_hbm=int(95.73 * GIB),
            hbm_bandwidth=2765e9,
            link_bandwidth=100e9,
            network_bandwidth=6.25e9,
            dimensions=3,
            wraps_at=4,
            largest=6144,
            cloud_name="v5p",
            counts=2,
        ),
        # v6e: 800 GB/s both ways over 4 links; 25.6 Tbps a pod of 256 chips.
        Chip(
            name="v6e",
            flops=PEAK_BFLOAT16["TPU v6e"],
            hbm=32 * GIB,
            usable_hbm=int(31.24 * GIB),
            hbm_bandwidth=1638e9,
            link_bandwidth=100e9,
            network_bandwidth=12.5e9,
            dimensions=2,
            wraps_at=16,
            largest=256,
            cloud_name="v6e",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several of the same shape."""

    chip: Chip
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        shape = f"{self.chip.name}:{spelled(self.sides)}"
        return f"{self.slices} x {shape}" if self.slices > 1 else shape

    @property
    def accelerator_type(self) -> str:
        """Cloud's name of one slice, such as "v5p-128"."""
        return f"{self.chip.cloud_name}-{self.chip.counts * math.prod(self.sides)}"

    @property
    def chips(self) -> int:
        return math.prod(self.sides) * self.slices

    def ring_bandwidth(self, dimensions: frozenset[int]) -> float:
        """Bytes per second that a chip can send along these dimensions of the torus.

        A ring is used both ways round; on a line the data of one way passes every link.
        """
        ways = sum(
            2 if self.sides[d] % self.chip.wraps_at == 0 else 1
            for d in dimensions
            if self.sides[d] > 1
        )
        return max(ways, 1) * self.chip.link_bandwidth


AnyChip = Chip | Gpu
AnyTopology = Topology | Cluster


def parse(name: str, slices: int = 1) -> AnyTopology:
    """ "v5p:4x4x4" or "v5p-128" → Topology, "h100:8" → Cluster. Raises UserError for what does not
    exist."""
    if (cluster := parse_gpus(name, slices)) is not None:
        return cluster
    match = re.fullmatch(r"(\w+)(?::(\d{1,6}(?:x\d{1,6})+)|-(\d{1,6}))", name.strip().lower())
    chip = _chip(match[1]) if match else None
    if match is None or chip is None:
        types = ", ".join(f"{chip.cloud_name}-N" for chip in CHIPS.values())
        raise UserError(
            f"--topology {name}: write CHIP:SHAPE with a chip of {', '.join(CHIPS)} and the chips "
            f"along each side, for example v5p:4x4x4 or v5e:16x16; or Cloud's accelerator type "
            f"({types}), for example v5p-128; or GPU:NUMBER with a GPU of {', '.join(GPUS)}, for "
            "example h100:8"
        )
    there_are = described(chip.name, chip.dimensions, chip.cloud_name, chip.counts, chip.largest)
    if match[3]:
        chips, rest = divmod(int(match[3]), chip.counts)
        usual = None if rest else usual_shape(chips, chip.dimensions, chip.largest)
        if usual is None:
            raise UserError(f"--topology {name}: there is no such slice; {there_are}")
        return Topology(chip, usual, slices)
    sides = tuple(int(side) for side in match[2].split("x"))
    if len(sides) != chip.dimensions:
        example = "4x4x4" if chip.dimensions == 3 else "16x16"
        raise UserError(
            f"--topology {name}: a {chip.name} slice has {chip.dimensions} sides, such as {example}"
        )
    if not exists(sides, chip.largest):
        turned = tuple(sorted(sides))
        if exists(turned, chip.largest):
            there_are = f"write {chip.name}:{spelled(turned)}"
        raise UserError(f"--topology {name}: there is no such slice; {there_are}")
    return Topology(chip, sides, slices)


def _chip(name: str) -> Chip | None:
    """By our name or Cloud's."""
    return next((chip for chip in CHIPS.values() if name in (chip.name, chip.cloud_name)), None)


def prepare_environment() -> None:
    """Let libtpu compile on a machine without a TPU, silently. Call it before jax is imported."""
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",  # ask no metadata server for a TPU
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5p-8",  # any; without one libtpu looks for it and complains
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # compiling needs no chip, so it can share the machine
        TPU_STDERR_LOG_LEVEL="3",
        TPU_MIN_LOG_LEVEL="3",
    )
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_platforms", "cpu")
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"


def devices(topology: AnyTopology) -> list[Any]:
    """Devices that programs can be compiled for and nothing can run on.

    Raises UserError for a shape that does not exist and for GPUs without jax's plugin,
    ModuleNotFoundError for TPUs without libtpu.
    """
    if isinstance(topology, Cluster):
        return gpu_devices(topology)
    import libtpu  # noqa: F401
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.chip.cores_fused:
        options["chip_config_name"] = "megacore"
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    shape = f"{topology.chip.name}:{spelled(topology.sides)}"
    try:
        return list(topologies.get_topology_desc(shape, "tpu", **options).devices)
    except Exception as error:  # a JaxRuntimeError; the type is not public
        raise UserError(f"--topology {shape}: {first_line(error)}") from error
