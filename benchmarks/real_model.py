"""What do the papers' claims look like on a real model, whose answers are above chance?

    python benchmarks/real_model.py --shared DIR --model DIR [--workdir DIR] [--quick]
        [--heal 6,15] [--best N] [--tokens N] [--seeds 0,1,2] [--of TASKS] [--json]
        [--config.FIELD=VALUE …]

DIR of --shared has corpora/ and tasks/ (see CONTRIBUTING.md); --model is any checkpoint that
chopjax computes with. What is done, and may be killed at any time, since the same command goes on:

1. every strategy, by name and by measurement, at a tenth to a half of the layers, not healed:
   accuracy on six tasks, and loss on held-out text;
2. of those the best N at each depth of --heal, by their loss, repaired without training;
3. the same healed with --tokens each, at the last depth once for every seed;
4. the time of a forward pass, of prefill and of a token, by layers.

It is `chopjax sweep` over configs/sweep.py and `chopjax latency`; WORKDIR/report.html has it all.
The text is corpora/mixed.train.jsonl: its last documents are held out, the rest is to calibrate and
to heal on. All flags of `chopjax sweep` that begin with --config. do here what they do there.

--quick is for an hour or two: two tasks, fewer documents and tokens, two depths, and none of the
measures that leave layers out one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from chopjax import cli
from chopjax.checkpoint.describe import describe
from chopjax.chop.configurations import STRATEGIES, resolve_remove
from chopjax.chop.importance import MEASURED
from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.disk.atomic import new_file
from chopjax.errors import UserError
from chopjax.models import flops
from chopjax.models.config import ModelConfig
from chopjax.report.sweep import table, write_report
from chopjax.report.sweep_rows import mean_accuracy, mean_accuracy_error
from chopjax.runs import costs, scored
from chopjax.runs.settings import SweepSettings, read_sweep, split_list
from chopjax.train.config_file import load_config
from chopjax.train.timing import step_seconds

RECIPE = Path(__file__).parents[1] / "configs" / "sweep.py"
CORPUS = "mixed.train.jsonl"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    tasks: tuple[str, ...]
    documents: int  # of each task
    held_out: int  # documents of the corpus
    calibration: tuple[int, int]  # documents, and tokens of each
    strategies: tuple[str, ...]
    remove: str
    heal: str  # of `remove`, where the best are repaired and healed
    best: int
    batch: int  # sequences of 256 tokens
    tokens: int  # of healing
    seeds: str


FULL = Size(
    ("piqa", "arc_easy", "hellaswag", "winogrande", "openbookqa", "boolq"),
    200, 32, (32, 256), (*STRATEGIES, *MEASURED), "0.1,0.2,0.3,0.4,0.5", "0.2,0.5", 6, 16, 1 << 19,
    "0,1,2",
)  # fmt: skip
# For 30 layers, leaving out each of them is four fifths of an analysis without SLEB's search, and
# that is eight times as long again.
SLOW = ("perplexity", "sleb")
QUICK = Size(
    ("piqa", "arc_easy"),
    100, 8, (16, 128), tuple(name for name in FULL.strategies if name not in SLOW), "0.2,0.5",
    "0.5", 2, 4, 1 << 15, "0",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--shared", type=Path, default=os.environ.get("CHOPJAX_SHARED"))
    add("--model", type=Path, required=True)
    add("--workdir", type=Path, default=Path("runs/real-model"))
    add("--quick", action="store_true")
    add("--heal", metavar="LIST", help="how many layers are out where models heal; '': nowhere")
    add("--best", type=int, metavar="N", help="how many strategies heal at each depth")
    add("--tokens", type=int, metavar="N", help="that each heals on")
    add("--seeds", metavar="LIST", help="of healing at the last depth")
    add("--of", metavar="TASKS", help="those that figures and tables have; by default all")
    add("--json", action="store_true", help="one JSON object on the last line")
    args, more = parser.parse_known_args()
    if args.shared is None:
        parser.error("--shared DIR, or CHOPJAX_SHARED, is needed")
    if unknown := [flag for flag in more if not flag.startswith("--config.")]:
        parser.error(f"there is no flag {unknown[0]}")
    given = {name: getattr(args, name) for name in ("heal", "best", "tokens", "seeds")}
    size = dataclasses.replace(
        QUICK if args.quick else FULL, **{k: v for k, v in given.items() if v is not None}
    )
    try:
        split(args.shared / "corpora" / CORPUS, args.workdir, size.held_out)
        flags = [*settings(args, size), *more]
        num_layers = describe(str(args.model)).config.num_layers
        healed = depths(size, num_layers)
        both = [*flags, *(["--config.healed=True", "--config.repair=linear"] if healed else [])]
        wanted = read_sweep(load_config(RECIPE, [flag.removeprefix("--config.") for flag in both]))
    except (UserError, FileNotFoundError) as error:
        parser.error(str(error))
    swept_at = {resolve_remove(n, num_layers) for n in split_list(wanted.remove)}
    if lacking := sorted(set(healed) - swept_at):
        parser.error(f"--heal {lacking[0]}: not among the numbers of layers that are removed")
    shown, asked = split_list(args.of or ""), split_list(wanted.score.tasks)
    if unknown := sorted(set(shown) - set(asked)):
        parser.error(f"--of {unknown[0]}: not one of the tasks, {', '.join(asked)}")
    print(f"about {hours(wanted, size, healed):.1f} hours here, where nothing is done", flush=True)
    if (report := swept(args.workdir, flags)) is None:
        return 1
    rows = [report["parent"], *report["points"]]
    for count, seeds in healed.items():
        chosen = [f"--config.strategies={','.join(best(report, count, size.best))}"]
        chosen += [f"--config.remove={count}", f"--config.seeds={seeds}"]
        for state in ("--config.repair=linear", "--config.healed=True"):
            if (more_rows := swept(args.workdir, [*flags, *chosen, state])) is None:
                return 1
            rows += [row for row in more_rows["points"] if row not in rows]
    if shown:
        rows = [only(shown, row) for row in rows]
    command = "python benchmarks/real_model.py " + " ".join(sys.argv[1:])
    report = write_report(args.workdir, dataclasses.asdict(wanted), rows, command)
    if code := latency(args, wanted):
        return code
    print("\n".join(markdown(report)))
    print(f"\nfigures: {args.workdir}/{{overview,accuracy,loss,ranking,latency}}.png and")
    print(f"{args.workdir}/analysis-*/{{distance,layers}}.png; all: {args.workdir}/report.html")
    if args.json:
        print(json.dumps(summary(report)))
    return 0


def split(corpus: Path, workdir: Path, held_out: int) -> None:
    """WORKDIR/text/train.jsonl and held_out.jsonl: the last documents of a corpus, and the rest."""
    lines = corpus.read_text().splitlines(keepends=True)
    parts = {"train": lines[:-held_out], "held_out": lines[-held_out:]}
    for name, part in parts.items():
        path = workdir / "text" / f"{name}.jsonl"
        if not path.exists() or path.read_text() != "".join(part):
            with new_file(path, overwrite=True) as temporary:
                temporary.write_text("".join(part))


def settings(args: argparse.Namespace, size: Size) -> list[str]:
    """Flags of the sweep."""
    steps = size.tokens // (size.batch * 256)
    values = {
        "model": args.model,
        "text.train": args.workdir / "text" / "train.jsonl",
        "text.held_out": args.workdir / "text" / "held_out.jsonl",
        "strategies": ",".join(size.strategies),
        "remove": size.remove,
        "calibration.sequences": size.calibration[0],
        "calibration.sequence_length": size.calibration[1],
        "score.tasks": ",".join(f"local_{name}" for name in size.tasks),
        "score.include_path": args.shared / "tasks" / "lm_eval",
        "score.limit": size.documents,
        "heal.data.batch_size": size.batch,
        "heal.total_steps": steps,
        # The recipe's rate is for models of a few million parameters.
        "heal.optimizer.peak_learning_rate": 2e-4,
        "heal.optimizer.warmup_steps": max(steps // 10, 1),
    }
    return [f"--config.{name}={value}" for name, value in values.items()]


def depths(size: Size, num_layers: int) -> dict[int, str]:
    """Layers removed where models heal → seeds."""
    counts = sorted(resolve_remove(text, num_layers) for text in split_list(size.heal))
    return dict.fromkeys(counts[:-1], "0") | dict.fromkeys(counts[-1:], size.seeds)


def swept(workdir: Path, flags: list[str]) -> dict[str, Any] | None:
    """The report of `chopjax sweep`; None where it ended with an error, which it has printed."""
    if cli.main(["sweep", "--config", str(RECIPE), "--workdir", str(workdir), *flags]):
        return None
    report: dict[str, Any] = json.loads((workdir / "report.json").read_text())
    return report


def best(report: dict[str, Any], count: int, most: int) -> list[str]:
    """The strategies with the lowest losses, of several that keep the same layers the first."""
    rows = [row for row in report["points"] if row["remove"] == count]
    by_layers = {row["keep"]: row for row in reversed(rows)}
    ranked = sorted(by_layers.values(), key=lambda row: float(row["loss"]))
    return [row["strategy"] for row in ranked[:most]]


def latency(args: argparse.Namespace, wanted: SweepSettings) -> int:
    """WORKDIR/latency.json with its figure, where it is not there."""
    path = args.workdir / "latency.json"
    if path.exists():
        return 0
    short = ["--length", "128", "--rounds", "5"] if args.quick else []
    command = ["latency", str(args.model), "--remove", wanted.remove, "--json", *short]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main([*command, "--plot", str(args.workdir / "latency")])
    if not code:
        with new_file(path) as temporary:
            temporary.write_text(printed.getvalue())
    return code


def only(tasks: Sequence[str], row: dict[str, Any]) -> dict[str, Any]:
    """A row with these tasks alone: a mean over tasks that tell nothing of a model tells less."""
    kept = {name: {task: row[name][task] for task in tasks} for name in ("accuracy", "chance")}
    return row | kept


# ------------------------------------------------------------------------------------ How long


def hours(wanted: SweepSettings, size: Size, healed: dict[int, str]) -> float:
    """By the FLOPs of it all, at the rate of a training step of half the model on one sequence."""
    model = describe(wanted.model).config
    data, L = wanted.heal.data, model.num_layers
    length = data.sequence_length
    without = {n: model.keep(range(L - n)) for n in range(L)}
    step = dataclasses.replace(wanted.heal, data=dataclasses.replace(data, batch_size=1))
    rate = costs.step_flops(without[L // 2], step) / step_seconds(without[L // 2], step)
    strategies = split_list(wanted.strategies)
    points = [0, *(resolve_remove(n, L) for n in split_list(wanted.remove) for _ in strategies)]
    training, seeds = 0, {"0"}
    for count, each in healed.items():
        trainings = len(split_list(each)) * size.best
        points += [count] * 2 * trainings  # repaired, and healed
        training += trainings * flops.training_per_token(without[count], length)
        seeds.update(split_list(each))
    scoring = sum(flops.forward_per_token(without[n], length) for n in points)
    tokens = wanted.heal.total_steps * data.batch_size * length
    work = scored_tokens(wanted, load_tokenizer(wanted.model)) * scoring + tokens * training
    return (work + len(seeds) * analysis_flops(wanted, model)) / rate / 3600


def scored_tokens(wanted: SweepSettings, tokenizer: Tokenizer) -> int:
    """That a model reads at a point: the held-out text, and of every question its prompt once."""
    lines = Path(wanted.text.held_out).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    for task in scored.find(wanted.score).tasks["tasks"].values():
        task.build_all_requests(limit=int(wanted.score.limit) or None)
        asked = [request.args for request in task.instances]
        texts += {context for context, _ in asked} | {str(answer) for _, answer in asked}
    return sum(map(len, tokenizer.encode_batch(texts)))


def analysis_flops(wanted: SweepSettings, model: ModelConfig) -> float:
    """Of one analysis: each measure's layers and heads (chop/search.py). SLEB's search runs about
    four tenths of the plain loop's layers (RESULTS.md)."""
    names, calibration = split_list(wanted.strategies), wanted.calibration
    L, length = model.num_layers, calibration.sequence_length
    layers, heads = 0.0, 0.0
    if set(names) & {"similarity", "block-influence", "magnitude"}:
        layers += L
    if "taylor" in names:
        layers, heads = layers + 3 * L, heads + 3
    if "perplexity" in names:
        layers, heads = layers + L * L / 2, heads + L
    if "sleb" in names:
        gone = max(resolve_remove(n, L) for n in split_list(wanted.remove))
        last = max(L - gone, 2)
        lists = [(left - 2, left - 1) for left in range(L, last, -1)]  # candidates, their layers
        layers += 0.4 * sum(candidates * each for candidates, each in lists)
        heads += sum(candidates for candidates, _ in lists)
    head = 2 * model.table_dim * model.vocab_size
    a_token = layers * flops.layer_per_token(model, length) + heads * head
    return a_token * calibration.sequences * length


# ------------------------------------------------------------------------------------ What it says


def markdown(report: dict[str, Any]) -> list[str]:
    """The tables, as RESULTS.md and docs/smollm2.md have them."""
    parent = report["parent"]
    lines = ["", f"Held-out loss, nats per token, over {parent['tokens']:,} tokens:", ""]
    lines += drawn(*table(report, "loss", "{:.3f}"))
    values: dict[str, Callable[[dict[str, Any]], float]] = {
        task: functools.partial(accuracy, task) for task in parent["accuracy"]
    }
    if len(values) > 1:
        values[f"mean of {', '.join(values)}"] = mean_accuracy
    for name, value in values.items():
        lines += ["", f"Accuracy, {name}:", "", *drawn(*table(report, value, "{:.3f}"))]
    if error := mean_accuracy_error(parent):
        alone = [f"{task} {each[1]:.3f}" for task, each in parent["accuracy"].items()]
        lines += ["", f"The parent's standard errors: mean {error:.3f}, {', '.join(alone)}."]
    return lines


def accuracy(task: str, row: dict[str, Any]) -> float:
    return float(row["accuracy"][task][0])


def drawn(header: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *body)]


def summary(report: dict[str, Any]) -> dict[str, Any]:
    names = ("strategy", "remove", "keep", "method", "seed", "loss", "accuracy")
    of_parent = ("loss", "tokens", "accuracy", "chance")
    return {
        "parent": {name: report["parent"][name] for name in of_parent},
        "points": [{name: row[name] for name in names} for row in report["points"]],
        "unit": "held-out loss in nats a token; accuracy with its standard error",
    }


if __name__ == "__main__":
    sys.exit(main())
