"""`chopjax score`: tasks of lm-evaluation-harness, with its definitions and numbers, in JAX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from chopjax import interrupts
from chopjax.commands.flags import add_processes, add_scoring_model, check_scoring_model
from chopjax.paths import expanded

if TYPE_CHECKING:
    from chopjax.score.tasks import Tasks

SUITES = ("just_chop", "just_chop_v1", "deeper_layers", "quick")  # chopjax/score/suites


EXAMPLE = """\
chopjax score healed --tasks piqa,arc_easy,winogrande --output results
chopjax score healed --suite just_chop --output results --log-samples
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_scoring_model(parser)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--suite",
        choices=SUITES,
        metavar="NAME",
        help="the evaluation of a paper: just_chop (6 tasks, C4 perplexity), just_chop_v1 (13 "
        "tasks), deeper_layers (MMLU, BoolQ, C4 loss / log V); or quick, for a laptop",
    )
    which.add_argument(
        "--tasks",
        metavar="LIST",
        help="names of tasks or groups, separated by commas; patterns such as mmlu_* work",
    )
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="results go to DIR/MODEL/results_DATE.json; a run that was killed goes on from there",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="read documents from DIR/TASK/SPLIT.jsonl, not from the hub; same columns",
    )
    add(
        "--without",
        default="",
        metavar="LIST",
        help="tasks to leave out of a suite or group (c4 is the perplexity of a suite)",
    )
    add(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="also measure perplexity on this text: .jsonl, .txt, a folder or hf:NAME",
    )
    add("--include-path", metavar="DIR", help="folder of task files (YAML) of your own")
    add("--limit", type=int, metavar="N", help="documents of each task at most (default: all)")
    add(
        "--num-fewshot",
        type=int,
        metavar="K",
        help="examples before each question, except where a task fixes them at 0 "
        "(default: what the task says)",
    )
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="ids that the network may read; longer requests lose ids on the left (default: the "
        "model's context length)",
    )
    add(
        "--bos",
        choices=("auto", "yes", "no"),
        default="auto",
        help="special tokens around each text (default: auto, what the tokenizer does by itself)",
    )
    add(
        "--log-samples",
        action="store_true",
        help="write every document's answers to samples_TASK_DATE.jsonl, as `compare` needs them",
    )
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    import os

    # The harness's bars would stand between ours. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from chopjax.errors import UserError
    from chopjax.score.tasks import load_tasks
    from chopjax.score.texts import find_texts
    from chopjax.train import distributed

    check_scoring_model(args)
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f"--num-fewshot {args.num_fewshot}: not below 0")
    output = expanded(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; a folder is needed")
    names = [args.suite] if args.suite else _names(args.tasks)
    launch = distributed.launch_of(args)
    found = distributed.find(launch, os.environ)
    tasks, texts = None, []
    # A typo is found before the others are waited for; only the first process needs the data.
    if found is None or found.index == 0:
        tasks = load_tasks(
            names, args.include_path, args.num_fewshot, args.data_dir, _names(args.without)
        )
        texts = find_texts(tasks, args.text, args.data_dir)
    with distributed.joined(launch):
        return _score(args, tasks, texts, output)


def _score(args: argparse.Namespace, tasks: Tasks | None, texts: list, output: Path) -> int:
    """On every process; tasks: None on all but the first."""
    import functools

    from chopjax.report.terminal import show
    from chopjax.score import processes
    from chopjax.score.generation import generate_batch
    from chopjax.score.model import open_engine, use_compilation_cache
    from chopjax.score.results import as_json, table
    from chopjax.score.run import evaluate

    use_compilation_cache()
    loaded, engine = open_engine(
        args.model,
        args.revision,
        args.dtype,
        args.max_length,
        args.batch_size,
        args.fsdp,
        args.tensor,
    )
    if tasks is None:
        generate = functools.partial(generate_batch, engine)
        return processes.follow({"scores": engine.compute_scores, "generate": generate})
    bos = {"auto": None, "yes": True, "no": False}[args.bos]
    interrupts.advise("the answers so far are kept, and the same command goes on from there")
    with processes.leading():
        results = evaluate(loaded, engine, tasks, output, args.limit, bos, args.log_samples, texts)
    if args.json:
        print(as_json(results))
    else:
        show(table(results))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
