"""Which way of healing a chop is best, where each costs the same?

    python benchmarks/heal.py --shared DIR [--model DIR] [--budget 1e13] [--seeds 0,1,2]
        [--workdir DIR] [--methods …] [--json] [--config.FIELD=VALUE …]

DIR is a folder with models/mix-llama-12l, corpora/ and tasks/ (see CONTRIBUTING.md). Half of the
layers go, those next to the input; then every method heals with the same FLOPs, or the same wall
time (`--budget 0.5h`), on the mixed text, and is measured on stories that no training text has. It
is `chopjax sweep --config configs/equal_compute.py`, and may be killed: the same command goes on.
At its end stands the table for RESULTS.md, what lasts of the repair, and where the figure is.

--model takes another checkpoint, SmolLM2-135M say, with the accuracy on five tasks of 200 documents
each: it has something to lose there. All flags of `chopjax sweep` that begin with --config. do here
what they do there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from chopjax import cli
from chopjax.checkpoint.describe import describe
from chopjax.errors import UserError
from chopjax.report import methods
from chopjax.runs import costs
from chopjax.runs.budget import parse_budget
from chopjax.runs.methods import parse_method
from chopjax.runs.settings import read_sweep
from chopjax.train.config_file import load_config
from chopjax.train.timing import step_seconds

RECIPE = Path(__file__).parents[1] / "configs" / "equal_compute.py"
TASKS = "local_piqa,local_arc_easy,local_copa,local_winogrande,local_hellaswag"


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--shared", type=Path, default=os.environ.get("CHOPJAX_SHARED"))
    parser.add_argument("--model", type=Path, help="by default models/mix-llama-12l of --shared")
    parser.add_argument("--budget", default="1e13", help="FLOPs, or a time such as 0.5h")
    parser.add_argument("--methods", help="by default all that the recipe has")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/heal"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args, more = parser.parse_known_args()
    if args.shared is None:
        parser.error("--shared DIR, or CHOPJAX_SHARED, is needed")
    if unknown := [flag for flag in more if not flag.startswith("--config.")]:
        parser.error(f"there is no flag {unknown[0]}")
    flags = [*settings(args), *more]
    try:
        minutes = 60 * hours(flags, args.budget)
    except UserError as error:
        parser.error(str(error))
    print(f"about {minutes:.0f} minutes of training, where nothing is done")
    command = ["sweep", "--config", str(RECIPE), "--workdir", str(args.workdir), *flags]
    if code := cli.main(command):
        return code
    report = json.loads((args.workdir / "report.json").read_text())
    print("\n".join(markdown(report)))
    print(f"\nfigure: {args.workdir / 'methods.png'}")
    if args.json:
        print(json.dumps(summary(report)))
    return 0


def settings(args: argparse.Namespace) -> list[str]:
    """Flags of the sweep."""
    corpora = Path(args.shared) / "corpora"
    values = {
        "model": args.model or Path(args.shared) / "models" / "mix-llama-12l",
        "text.train": corpora / "mixed.train.jsonl",
        "text.held_out": corpora / "tinystories.heldout.jsonl",
        "seeds": args.seeds,
        "budget": args.budget,
    }
    if args.methods:
        values["methods"] = args.methods
    if not args.model:  # which is 160 wide: adapters of rank 64 would cost what they save
        values["heal.adapter.rank"] = 8
    else:
        values |= {
            "score.tasks": TASKS,
            "score.include_path": Path(args.shared) / "tasks" / "lm_eval",
            "score.limit": 200,
        }
    return [f"--config.{name}={value}" for name, value in values.items()]


def hours(flags: list[str], budget: str) -> float:
    """Of training, by the time of a step of half the model here."""
    wanted = read_sweep(load_config(RECIPE, [flag.removeprefix("--config.") for flag in flags]))
    names = wanted.methods.split(",")
    trainings = sum(bool(parse_method(name.strip()).trained) for name in names)
    each = parse_budget(budget)
    seconds = each.amount
    if not each.is_time:
        model = describe(wanted.model).config
        half = model.keep(range(math.ceil(model.num_layers / 2)))
        speed = costs.step_flops(half, wanted.heal) / step_seconds(half, wanted.heal)
        seconds = each.amount / speed
    return seconds * trainings * len(wanted.seeds.split(",")) / 3600


def markdown(report: dict[str, Any]) -> list[str]:
    """The table and its sentences, as RESULTS.md has them."""
    header, body = methods.table(report)
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
    conventions = [f"{name}: {how}." for name, how in report["conventions"].items()]
    return ["", *lines, "", *methods.sentences(report), *conventions]


def summary(report: dict[str, Any]) -> dict[str, Any]:
    (cases,) = methods.by_method(report).values()
    return {
        "losses": {
            name: methods.mean([row["loss"] for row in rows]) for name, rows in cases.items()
        },
        "lasting": methods.lasting(cases),
        "unit": "held-out loss in nats a token, and its standard deviation over seeds",
        "settings": report["settings"],
    }


if __name__ == "__main__":
    sys.exit(main())
