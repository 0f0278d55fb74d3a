"""Do the recipes for TPUs and GPUs compile with the real compiler, and fit, without either?

    python benchmarks/plan.py [--only NAME ...] [--machine-code] [--json]

Each case is `chopjax plan --json` in a process of its own, with all layers and after the chop where
the recipe trains the parent first. With --machine-code the compiler goes on to the end, some
minutes a case. Prints memory, the roofline's step time and MFU, and the seconds until compiled and
in all (process start to exit, both phases); the exit code is 1 if one does not fit. Where the plan
could not read all of a program, its step is too short, and the line says so. Cases for GPUs want
`pip install 'chopjax[gpu-plan]'`, and are planned with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
# Name → recipe, topology, further flags.
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "7b-v5p": ("just_chop_llama2_7b.py", "v5p:4x4x4", ()),
    "7b-v5e": ("just_chop_llama2_7b.py", "v5e:16x16", ()),
    "7b-taught-v5p": ("just_chop_llama2_7b_taught.py", "v5p:4x4x4", ()),
    "7b-taught-v5e": (
        "just_chop_llama2_7b_taught.py",
        "v5e:16x16",
        ("--config.chop.after_steps=0",),
    ),
    "13b-v5p": ("just_chop_llama2_13b.py", "v5p:4x4x8", ()),
    "7b-h100": ("just_chop_llama2_7b_h100.py", "h100:8", ()),
    "13b-h100": ("just_chop_llama2_13b_h100.py", "h100:8", ()),
    "70b-v5p": ("just_chop_llama2_70b.py", "v5p:4x4x8", ()),
    "70b-sparse-cores-v5p": ("just_chop_llama2_70b_sparse_cores.py", "v5p:4x4x8", ()),
    "7b-qlora-v5e": ("deeper_layers_llama2_7b.py", "v5e:1x1", ()),
    "7b-qlora-v6e": ("deeper_layers_llama2_7b.py", "v6e:1x1", ()),
    "mistral-qlora-v5e": ("deeper_layers_mistral_7b.py", "v5e:1x1", ()),
    "qwen-7b-qlora-v5e": ("deeper_layers_qwen_7b.py", "v5e:1x1", ()),
    "phi2-qlora-v5e": ("deeper_layers_phi2.py", "v5e:1x1", ()),
    "13b-qlora-v5e": ("deeper_layers_llama2_13b.py", "v5e:1x1", ()),
    "qwen-14b-qlora-v5e": ("deeper_layers_qwen_14b.py", "v5e:1x1", ()),
    "7b-qlora-taught-v5e": (
        "deeper_layers_llama2_7b.py",
        "v5e:1x1",
        ("--config.teacher.model=parent",),
    ),
    "70b-qlora-v5e": ("deeper_layers_llama2_70b.py", "v5e:2x4", ()),
}


def plan(name: str, machine_code: bool) -> dict[str, Any]:
    """One case: the plan, and the seconds that the whole process took."""
    recipe, topology, flags = CASES[name]
    command = [sys.executable, "-m", "chopjax.cli", "plan", "--config", str(CONFIGS / recipe)]
    if machine_code:
        command.append("--machine-code")
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "--topology", topology, "--json", *flags],
        stdout=subprocess.PIPE,
        env=os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"},
    )
    if done.returncode not in (0, 1):  # 1: it does not fit
        done.check_returncode()
    return json.loads(done.stdout) | {"wall_seconds": time.monotonic() - begun}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--machine-code", action="store_true", help="compile to the end")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        found = plan(name, args.machine_code)
        for phase in found["phases"]:
            row = {
                "case": name,
                "topology": found["topology"],
                "phase": phase["name"],
                "layers": phase["layers"],
                "compiled": found["compiled"],
                "fits": phase["fits"],
                "gib": phase["memory"]["total"] / 2**30,
                "usable_gib": phase["memory"]["limit"] / 2**30,
                "hbm_traffic": phase["hbm_traffic"],
                "unread": [*phase["unknown_kernels"], *["loop"] * phase["unknown_loops"]],
                "step_seconds": phase["step_seconds"],
                "mfu": phase["mfu"],
                "machine_code": phase["machine_code"],
                "compile_seconds": phase["compile_seconds"],
                "wall_seconds": found["wall_seconds"],
            }
            rows.append(row)
            times = "no times"
            if found["fits"]:
                times = f"step {row['step_seconds']:6.2f} s  MFU {100 * row['mfu']:5.1f} %"
                times += "  (NOT ALL OF IT READ)" if row["unread"] else ""
            print(
                f"{name:19} {row['layers']:3} layers  {'fits' if row['fits'] else 'TOO LARGE':9} "
                f"{row['gib']:6.2f} of {row['usable_gib']:.2f} GiB  {times}  "
                f"compiled in {row['compile_seconds'] or float('nan'):.0f} s, "
                f"in all {row['wall_seconds']:.0f} s",
                flush=True,
            )
    fits = all(row["fits"] and row["compiled"] for row in rows)
    if args.json:
        print(json.dumps({"fits": fits, "rows": rows}))
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
