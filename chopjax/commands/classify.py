"""`chopjax classify`: how well what is left of a model tells classes apart, by prompts."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from chopjax import interrupts
from chopjax.disk.files import expanded

EXAMPLE = """\
chopjax classify gpt2-xl --train train.jsonl --test test.jsonl \\
    --template sst2 --layers 1,2,12,24,all --output sst2
chopjax classify gpt2-xl --train train.jsonl --test test.jsonl \\
    --template sst2 --layers 2,12,all --method none,full --output sst2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from chopjax.classify.templates import names
    from chopjax.classify.ways import HEADS, LEARNING_RATES, METHODS

    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="folder of a checkpoint, hub id owner/name, folder of `chopjax import`, or workdir of "
        "a training run",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for results.json, figure and report; rows that are there are not measured "
        "again, and another call adds its own",
    )
    add(
        "--save",
        metavar="BEST",
        help="folder for the model that is best on held-out examples, as transformers loads it: "
        "the language model, or with --head classifier one that AutoModelForSequenceClassification "
        "loads",
    )
    add("--overwrite", action="store_true", help="replace BEST if chopjax wrote it")
    add("--json", action="store_true", help="print results.json's object instead of the table")
    add = parser.add_argument_group("examples").add_argument
    for name in ("train", "test"):
        add(
            f"--{name}",
            required=True,
            action="append",
            metavar="FILE",
            help="labelled examples: .jsonl, a folder, tfds:NAME or hf:NAME, as `chopjax prepare` "
            "takes them; may be given several times",
        )
    add(
        "--template",
        required=True,
        metavar="NAME",
        help=f"what stands around an example, and the word of each class: {', '.join(names())}, or "
        "a file FILE.yaml",
    )
    add("--field", metavar="NAME", help="field with the text (default: text, else sentence)")
    add(
        "--label-field",
        default="label",
        metavar="NAME",
        help="field with the label (default: label)",
    )
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="leave out examples whose text has more tokens, and say how many (default: refuse "
        "prompts that are longer than the context)",
    )
    add(
        "--per-class",
        type=int,
        default=200,
        metavar="N",
        help="examples of each class to train on, at most (default: 200)",
    )
    add(
        "--held-out",
        type=int,
        default=1000,
        metavar="N",
        help="training examples held out to stop by (default: 1000)",
    )
    add(
        "--max-test",
        type=int,
        default=1000,
        metavar="N",
        help="examples to test on, at most (default: 1000)",
    )
    add = parser.add_argument_group("which layers").add_argument
    add(
        "--layers",
        required=True,
        metavar="LIST",
        help="how many layers are kept: counts and `all`, such as 1,2,12,all",
    )
    add(
        "--strategy",
        default="first",
        metavar="LIST",
        help="which ones: first, the paper's, or any other that `chopjax chop` knows by name or "
        "by measure; several with commas (default: first)",
    )
    add("--analysis", metavar="DIR", help="what `chopjax analyze` wrote about MODEL")
    add(
        "--protect",
        default="1,1",
        metavar="F,L",
        help="the first F and the last L layers are never chosen by a measure (default: 1,1)",
    )
    add = parser.add_argument_group("training").add_argument
    add(
        "--method",
        default="full",
        metavar="LIST",
        help=f"what is trained: {', '.join(METHODS)}; several with commas (default: full)",
    )
    add(
        "--head",
        default="lm",
        metavar="LIST",
        help=f"{' or '.join(HEADS)}: the label words' logits, or a linear head on the same hidden "
        "state, which every method trains, none too (default: lm)",
    )
    add("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 (default: 5)")
    add("--epochs", type=int, default=50, metavar="N", help="at most (default: 50)")
    add(
        "--patience",
        type=int,
        default=15,
        metavar="N",
        help="epochs without a better accuracy on held-out examples that end training "
        "(default: 15)",
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    add(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help=f"of AdamW, constant (default: by method: {rates})",
    )
    add("--batch-size", type=int, default=1, metavar="N", help="examples a step (default: 1)")
    add("--rank", type=int, default=8, metavar="R", help="of lora (default: 8)")
    add(
        "--targets",
        default="all",
        metavar="LIST",
        help="matrices that lora adapts: all, mlp, attention, or names of them (default: all)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of activations; what is trained is float32 (default: auto, float32 on CPU and "
        "bfloat16 elsewhere)",
    )


def run(args: argparse.Namespace) -> int:
    from chopjax.chop.importance import parse_protect
    from chopjax.classify.grid import classify, save_best
    from chopjax.classify.saving import check_saving
    from chopjax.classify.settings import ClassifySettings, TrainSettings
    from chopjax.classify.split import SplitSettings
    from chopjax.classify.task import prepare
    from chopjax.disk.atomic import check_free
    from chopjax.errors import UserError, escaped
    from chopjax.report.classify import rich_table, write_report
    from chopjax.runs.workdir import opened
    from chopjax.score.model import use_compilation_cache
    from chopjax.terminal import console, print_json, show

    interrupts.advise("the rows so far are kept, and the same command goes on from there")
    settings = ClassifySettings(
        model=args.model,
        train=tuple(args.train),
        test=tuple(args.test),
        template=args.template,
        layers=args.layers,
        revision=args.revision,
        field=args.field,
        label_field=args.label_field,
        max_tokens=args.max_tokens,
        strategies=_listed(args.strategy),
        heads=_listed(args.head),
        methods=_listed(args.method),
        seeds=args.seeds,
        split=SplitSettings(args.per_class, args.held_out, args.max_test),
        training=TrainSettings(args.epochs, args.patience, args.batch_size),
        learning_rate=args.learning_rate,
        rank=args.rank,
        targets=args.targets,
        dtype=args.dtype,
        analysis=args.analysis,
        protect=parse_protect(args.protect),
    )
    use_compilation_cache()
    folder = expanded(args.output)
    _check_places(folder)
    best = None if args.save is None else expanded(args.save)
    if best is not None:
        check_free(best, "export", args.overwrite)
    elif args.overwrite:
        raise UserError("--overwrite is for the folder of --save")
    task, conditions, wanted = prepare(settings)
    if best is not None:
        check_saving(task.description, settings.heads, settings.methods)
    with opened(folder, "classify", _check_places, flag="--output"):
        results, done = classify(task, conditions, wanted, folder)
        write_report(folder, results, _again(args))
        if best is not None:
            chosen = save_best(task, wanted, results, done, best, args.overwrite)
    if args.json:
        print_json(results)
        return 0
    show(rich_table(results))
    screen = console(soft_wrap=True)
    screen.print(f"{escaped(str(folder / 'report.html'))}: figure, table, settings")
    if best is not None:
        row = chosen.row
        screen.print(
            f"{escaped(str(best))}: {row['strategy']} {row['layers']} layers, {row['method']}, "
            f"{row['head']}, seed {row['seed']}; held-out {row['held_out_accuracy']:.1%}"
        )
    return 0


def _again(args: argparse.Namespace) -> str:
    """The command that does the same, for a shell, a flag a line."""
    from chopjax.commands.parser import verb_parser

    lines = [f"chopjax classify {shlex.quote(args.model)}"]
    for action in verb_parser("classify")._actions:
        value = getattr(args, action.dest, None)
        if not action.option_strings or action.nargs == 0 or value == action.default:
            continue
        for each in value if isinstance(value, list) else [value]:
            lines.append(shlex.join([action.option_strings[0], str(each)]))
    return " \\\n    ".join(lines)


def _listed(text: str) -> Any:
    """Names with commas between them; whether they are known is looked at later."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_places(folder: Path) -> None:
    from chopjax.classify.results import read_results
    from chopjax.errors import UserError
    from chopjax.report.classify import check_report

    if (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds a model, and results would stand in it; give another --output"
        )
    read_results(folder)
    check_report(folder)
