"""What does the same share of a model cost by each way of making it smaller?

    python benchmarks/rivals.py --shared DIR [--model DIR] [--workdir DIR]
        [--sequences 128] [--sequence-length 256] [--heal TOKENS] [--tasks DIR] [--documents 200]
        [--only NAME,…] [--json] [--config.FIELD=VALUE …]

DIR is a folder with models/mix-llama-12l and corpora/ (see CONTRIBUTING.md). Every rival is made by
its verb from the same parent, on the same text, and measured by `chopjax perplexity` on stories
that no rival has seen. May be killed: what is made stays in the workdir, and so does what is
measured; the same command goes on, and other settings want another --workdir. At its end stands the
table for RESULTS.md.

--heal adds rows of what has seen TOKENS more of the text: the parent itself, whatever can be
trained (of sparse models with the masks fixed), DimCHOP, whose columns go while it trains, and the
healed chop in fewer bits. All see the same batches; flags that begin with --config. are those of
`chopjax train`. --tasks, a folder with piqa/, arc_easy/ and hellaswag/, adds accuracies.

A row's cost: parameters as the file has them, those that are not zero, and the bytes on disk. The
bytes of zeros are counted like any others, since no format that is still read leaves them out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from chopjax import cli
from chopjax.checkpoint.open import open_checkpoint, open_to_score
from chopjax.checkpoint.size import size_of
from chopjax.models import parameters
from chopjax.narrow.units import make_plan, narrower, shares_that_work

RECIPE = Path(__file__).parents[1] / "configs" / "heal.py"
TEXTS = "mixed.train.jsonl", "tinystories.heldout.jsonl"  # looked at, measured on
METHODS, PATTERNS = ("magnitude", "wanda", "sparsegpt"), ("2:4", "4:8", "0.5")
SCORES = ("activation", "gradient")  # of what is narrowed
TASKS = {"piqa": "acc_norm", "arc_easy": "acc_norm", "hellaswag": "acc_norm"}
BATCH, LENGTH, INTERVAL = 16, 256, 10  # of healing; INTERVAL: DimCHOP's
PARENT, CHOP = "parent", "chop by input"


class Rival(NamedTuple):
    """words: of the verb that makes it, without MODEL and OUT; none for the parent itself. of: the
    row that it is made from."""

    name: str
    words: tuple[str, ...] = ()
    of: str = PARENT


def rivals(model: Path, text: Path, sequences: int, length: int) -> list[Rival]:
    """Half of the layers and half of the blocks' weights, by every way that there is, and what
    takes fewer bits."""
    look = ("--data", str(text), "--sequences", str(sequences), "--sequence-length", str(length))
    chop = ("chop", "--strategy", "input", "--remove", "0.5")
    found = [Rival(PARENT), Rival(CHOP, chop)]
    found.append(Rival("chop by input and repair", (*chop, "--repair", "linear", *look)))
    for pattern in PATTERNS:
        for method in METHODS:
            words = ("sparsify", "--method", method, "--pattern", pattern, *look)
            found.append(Rival(f"{method} {pattern}", words))
    shares = half_of_the_width(model)
    flags = [word for kind, share in shares.items() for word in (f"--{kind}", str(share))]
    named = " ".join(f"{kind}={share}" for kind, share in shares.items())
    for method in SCORES:
        words = ("narrow", *flags, "--method", method, *look)
        found.append(Rival(f"narrow {named} by {method}", words))
    formats = quantized(look)
    found += [Rival(name, words) for name, words in formats.items()]
    return found + [Rival(f"{CHOP} + {name}", words, CHOP) for name, words in formats.items()]


def quantized(look: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Name → words."""
    verb = ("quantize", "--weights")
    nearest = {name: (*verb, name) for name in ("int8", "fp8", "int4")}
    return nearest | {"int4 by gptq": (*verb, "int4", "--method", "gptq", *look)}


def healed(found: list[Rival], steps: int) -> list[Rival]:
    """What has been trained for so many steps."""
    trained = [rival for rival in found if rival.words[:1] != ("quantize",)]
    end = steps * 2 // 3 // INTERVAL * INTERVAL
    dimchop = {"final": 0.5, "start": end // 2, "end": end, "interval": INTERVAL}
    more = [Rival("DimCHOP 0.5", ("train", *as_flags("dimchop", dimchop)))]
    for rival in trained:
        masks = ("--config.masks=fixed",) if rival.words[:1] == ("sparsify",) else ()
        more.append(Rival(f"{rival.name} + healed", ("train", *masks), rival.name))
    name = f"{CHOP} + healed"
    of_chop = [rival for rival in found if rival.of == CHOP]
    return more + [Rival(rival.name.replace(CHOP, name), rival.words, name) for rival in of_chop]


def as_flags(group: str, settings: dict[str, Any]) -> list[str]:
    return [f"--config.{group}.{name}={value}" for name, value in settings.items()]


def half_of_the_width(model: Path) -> dict[str, float]:
    """Flags of `chopjax narrow` that take about half of the blocks' weights: of the heads the share
    nearest to a quarter that works, and what is missing then of the hidden units."""
    checkpoint = open_checkpoint(str(model))
    family, raw, config = checkpoint.family, checkpoint.raw_config, checkpoint.config
    works = shares_that_work(family, raw, config, "heads")
    shares = {"heads": min(works, key=lambda share: abs(share - 0.25))} if works else {}
    left = config
    if shares:
        left = make_plan(family, raw, config, shares).config
    one_less = narrower(left, {"mlp": left.mlp_dim - 1})
    unit = parameters.count_per_layer(left) - parameters.count_per_layer(one_less)
    missing = parameters.count_per_layer(left) - parameters.count_per_layer(config) / 2
    return {"mlp": round(missing / unit / left.mlp_dim, 2), **shares}


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--shared", type=Path, default=os.environ.get("CHOPJAX_SHARED"))
    parser.add_argument("--model", type=Path, help="by default models/mix-llama-12l of --shared")
    parser.add_argument("--workdir", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--heal", type=int, metavar="TOKENS", help="that each model trains on")
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="documents of the tasks")
    parser.add_argument("--documents", type=int, default=200, help="of each task")
    parser.add_argument("--only", help="names of rows, several separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args, more = parser.parse_known_args()
    if args.shared is None:
        parser.error("--shared DIR, or CHOPJAX_SHARED, is needed")
    if unknown := [flag for flag in more if not flag.startswith("--config.")]:
        parser.error(f"there is no flag {unknown[0]}")
    shared = Path(args.shared)
    model = args.model or shared / "models" / "mix-llama-12l"
    text, held_out = (shared / "corpora" / name for name in TEXTS)
    found = rivals(model, text, args.sequences, args.sequence_length)
    training: list[str] = []
    if args.heal is not None:
        steps = args.heal // (BATCH * LENGTH)
        if steps < 2 * INTERVAL:
            parser.error(f"--heal {args.heal}: at least {2 * INTERVAL * BATCH * LENGTH} tokens")
        found += healed(found, steps)
        training = [*training_flags(steps, 2e-4 if args.model else 6e-4), *more]
    by_name = {rival.name: rival for rival in found}
    wanted = args.only.split(",") if args.only else list(by_name)
    if unknown := sorted(set(wanted) - set(by_name)):
        parser.error(f"--only: there is no row {', '.join(unknown)}; there are {list(by_name)}")
    args.workdir.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in wanted:
        folder = made(by_name, name, model, args.workdir, text, training)
        rows[name] = size_of(open_to_score(str(folder)))._asdict()
        rows[name] |= {"loss": loss(folder, held_out, args.workdir)}
        if args.tasks:
            rows[name] |= accuracies(folder, args.tasks, args.documents, args.workdir)
    print("\n".join(markdown(rows)))
    if args.json:
        unit = "loss in nats a token, held out; accuracy with its standard error"
        print(json.dumps({"rows": rows, "unit": unit}))
    return 0


def training_flags(steps: int, rate: float) -> list[str]:
    """Of `chopjax train`, for all that is healed."""
    settings: dict[str, Any] = {
        "total_steps": steps,
        "data.batch_size": BATCH,
        "data.sequence_length": LENGTH,
        "optimizer.peak_learning_rate": rate,
        "optimizer.warmup_steps": max(steps // 10, 1),
        "checkpoints.every": 5 * INTERVAL,
        "checkpoints.keep_last": 1,
        "evaluation.every": 5 * INTERVAL,
        "log.tensorboard": False,
    }
    return [f"--config.{name}={value}" for name, value in settings.items()]


def made(
    by_name: dict[str, Rival],
    name: str,
    model: Path,
    workdir: Path,
    text: Path,
    training: list[str],
) -> Path:
    """The rival's folder, made unless it is there, after what it is made from."""
    rival = by_name[name]
    if not rival.words:
        return model
    out = workdir / name.replace(" + ", "+").replace(" ", "-").replace(":", "of")
    if out.exists():
        return out
    start = made(by_name, rival.of, model, workdir, text, training)
    verb, *flags = rival.words
    if verb != "train":
        done(verb, str(start), str(out), *flags)
        return out
    tokens, run = workdir / "tokens", workdir / f"{out.name}.run"
    if not tokens.exists():
        done("prepare", str(text), "--tokenizer", str(model), "--output", str(tokens))
    where = [f"--config.model={start}", f"--config.data.train={tokens}"]
    recipe = ["--config", str(RECIPE), "--workdir", str(run)]
    done("train", *recipe, *where, *training, *flags)
    done("export", str(run), str(out))
    shutil.rmtree(run)
    return out


def done(*words: str) -> None:
    if cli.main(list(words)):
        raise SystemExit(f"chopjax {' '.join(words)}: failed")


def loss(folder: Path, text: Path, workdir: Path) -> float:
    """Nats a token of whole documents, measured once."""
    kept = workdir / f"{folder.name}.loss.json"
    said = printed(kept, "perplexity", str(folder), "--data", str(text), "--json")
    measured: float = said["nats_per_token"]
    return measured


def accuracies(folder: Path, tasks: Path, documents: int, workdir: Path) -> dict[str, Any]:
    """Task → accuracy and its standard error, measured once."""
    said = printed(
        workdir / f"{folder.name}.tasks.json", "score", str(folder), "--tasks", ",".join(TASKS),
        "--data-dir", str(tasks), "--limit", str(documents), "--output", str(workdir / "scores"),
        "--json",
    )  # fmt: skip
    return {
        task: [said["results"][task][f"{name},none"] for name in (metric, f"{metric}_stderr")]
        for task, metric in TASKS.items()
    }


def printed(kept: Path, *words: str) -> dict[str, Any]:
    """The JSON object that a verb prints; kept in a file, which is read where it is there."""
    if not kept.is_file():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            done(*words)
        kept.write_text(said.getvalue())
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def markdown(rows: dict[str, Any]) -> list[str]:
    """The table, as RESULTS.md has it. Losses beside the parent's, where it is a row."""
    parent = rows.get(PARENT)
    tasks = [task for task in TASKS if any(task in row for row in rows.values())]
    header = ["", "parameters", "not zero", "bytes", "held-out nats a token"]
    header += ["more than the parent", *tasks, *(["mean", "relative drop"] if tasks else [])]
    lines = ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, row in rows.items():
        compared = parent is not None and name != PARENT
        cells = [f"{row[key]:,}" for key in ("parameters", "not_zero", "bytes")]
        cells.append(f"{row['loss']:.3f}")
        cells.append(f"{row['loss'] - parent['loss']:+.3f}" if parent and compared else "")
        if tasks:
            cells += ["{:.3f} ± {:.3f}".format(*row[task]) for task in tasks]
            cells.append(f"{mean(row):.3f}")
            cells.append(f"{1 - mean(row) / mean(parent):.1%}" if parent and compared else "")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def mean(row: dict[str, Any]) -> float:
    """Of the tasks' accuracies."""
    return float(sum(row[task][0] for task in TASKS) / len(TASKS))


if __name__ == "__main__":
    sys.exit(main())
