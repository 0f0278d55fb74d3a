"""`chopjax score`: tasks of lm-evaluation-harness, with its definitions and numbers, in JAX."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from chopjax import interrupts
from chopjax.commands.flags import add_processes, add_scoring_model, check_scoring_model
from chopjax.disk.files import expanded

if TYPE_CHECKING:
    from chopjax.checkpoint.describe import Description
    from chopjax.score.chat import Chat
    from chopjax.score.tasks import Tasks
    from chopjax.score.texts import Text

# Flags that make the programs which all processes run.
SHARED = ("revision", "dtype", "max_length", "batch_size", "fsdp", "tensor", "weights")
SUITES = ("just_chop", "just_chop_v1", "deeper_layers", "generative", "quick")  # score/suites


EXAMPLE = """\
chopjax score healed --tasks piqa,arc_easy,winogrande --output results
chopjax score healed --suite just_chop --output results --log-samples
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # What is needed is asked for in `run`: a misspelt flag is to be named, and --list-tasks needs
    # none of it.
    add_scoring_model(parser, needed=False)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--suite",
        choices=SUITES,
        metavar="NAME",
        help="the evaluation of a paper: just_chop (6 tasks, C4 perplexity), just_chop_v1 (13 "
        "tasks), deeper_layers (MMLU, BoolQ, C4 loss / log V); or generative (GSM8K, TriviaQA), or "
        "quick, for a laptop",
    )
    which.add_argument(
        "--tasks",
        metavar="LIST",
        help="names of tasks or groups, separated by commas; patterns such as mmlu_* work",
    )
    add(
        "--output",
        "--output-path",
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
    add(
        "--limit",
        metavar="N",
        help="documents of each task at most; below 1, such as 0.1, a share of them (default: all)",
    )
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
        "--apply-chat-template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="dress prompts by the tokenizer's chat template; NAME takes one of several",
    )
    add("--system-instruction", metavar="TEXT", help="what stands before every prompt")
    add(
        "--fewshot-as-multiturn",
        nargs="?",
        const="true",
        choices=("true", "false"),
        help="make examples turns of the chat (default: true with --apply-chat-template)",
    )
    add(
        "--list-tasks",
        action="store_true",
        help="list what --tasks (all without it) can name and stop; with --data-dir, what has its "
        "data there and what of it is missing",
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

    from chopjax.checkpoint.describe import describe
    from chopjax.errors import UserError
    from chopjax.launch import distributed, processes
    from chopjax.score.tasks import load_tasks
    from chopjax.score.texts import find_texts

    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f"--num-fewshot {args.num_fewshot}: not below 0")
    if args.list_tasks:
        return _list_tasks(args)
    given = {"MODEL": args.model, "--suite or --tasks": args.suite or args.tasks is not None}
    given["--output"] = args.output
    if missing := [name for name, value in given.items() if not value]:
        raise UserError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    check_scoring_model(args)
    limit, chat = _limit(args.limit), _chat(args)
    output = expanded(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; a folder is needed")
    names = [args.suite] if args.suite else _names(args.tasks)
    launch = processes.launch_of(args)
    process_group = processes.find(launch, os.environ)
    model, tasks, texts = args.model, None, []
    # A typo is found before the others are waited for; only the first process needs the data.
    if process_group is None or process_group.index == 0:
        model = describe(args.model, args.revision, quantized=True)
        tasks = load_tasks(
            names, args.include_path, args.num_fewshot, args.data_dir, _names(args.without)
        )
        texts = find_texts(tasks, args.text, args.data_dir)
    with distributed.joined(launch, {name: getattr(args, name) for name in SHARED}):
        return _score(args, model, tasks, texts, output, limit, chat)


def _score(
    args: argparse.Namespace,
    model: str | Description,
    tasks: Tasks | None,
    texts: list[Text],
    output: Path,
    limit: int | float | None,
    chat: Chat,
) -> int:
    """On every process; tasks: None on all but the first."""
    import functools

    from chopjax.launch import leader
    from chopjax.launch.distributed import wait_for_all
    from chopjax.score.generation import generate_batch
    from chopjax.score.model import open_engine, use_compilation_cache
    from chopjax.score.results import as_json, table
    from chopjax.score.run import evaluate
    from chopjax.terminal import show

    use_compilation_cache()
    loaded, engine = open_engine(
        model,
        args.revision,
        args.dtype,
        args.max_length,
        args.batch_size,
        args.fsdp,
        args.tensor,
        args.weights,
    )
    # On CPUs the first collective has half a minute to connect to the others: have them all here.
    # Afterwards they wait for the first one's prompts without a limit.
    wait_for_all("model")
    leader.from_first(True)
    if tasks is None:
        generate = functools.partial(generate_batch, engine)
        leader.follow({"scores": engine.compute_scores, "generate": generate})
        return 0
    bos = {"auto": None, "yes": True, "no": False}[args.bos]
    interrupts.advise("the answers so far are kept, and the same command goes on from there")
    results = evaluate(
        loaded, engine, tasks, output, limit, bos, args.log_samples, texts, chat=chat
    )
    leader.send(leader.END)
    if args.json:
        print(as_json(results))
    else:
        show(table(results))
    return 0


def _limit(text: str | None) -> int | float | None:
    """A number of documents, or a share of them."""
    from chopjax.errors import UserError

    if text is None:
        return None
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value < 1:
            return value
        if value >= 1 and value.is_integer():
            return int(value)
    raise UserError(f"--limit {text}: a number from 1, or a share such as 0.1, is needed")


def _chat(args: argparse.Namespace) -> Chat:
    from chopjax.score.chat import Chat

    multiturn = {None: None, "true": True, "false": False}[args.fewshot_as_multiturn]
    chat = Chat(args.apply_chat_template, args.system_instruction, multiturn)
    chat.as_flags()  # complains now of what does not go together
    return chat


def _list_tasks(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from chopjax.errors import UserError
    from chopjax.progress import say
    from chopjax.score.task_list import list_tasks

    names = [args.suite] if args.suite else _names(args.tasks or "")
    if not names:
        say("reading the task files of lm-evaluation-harness …")
    listed = list_tasks(names, args.include_path, args.data_dir, args.num_fewshot)
    if args.json:
        print(json.dumps([dataclasses.asdict(each) for each in listed]))
        return 0
    if not listed:
        raise UserError(f"--data-dir {args.data_dir}: has no folder named as a task is")
    wide = max(len(each.name) for each in listed)
    for each in listed:
        count = f"{each.tasks} tasks" if each.kind != "task" else ""
        lacks = each.missing or ()
        more = f", … ({len(lacks)} files)" if len(lacks) > 3 else ""
        state = f"lacks {', '.join(lacks[:3])}{more}" if lacks else "complete"
        about = "" if each.missing is None else state
        print(f"{each.name:{wide}}  {each.kind:5}  {count:>9}  {about}".rstrip())
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
