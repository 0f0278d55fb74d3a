"""`chopjax generate`: text from a model, alone or with a chop as its draft."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from chopjax.commands.flags import add_scoring_model, check_count, check_scoring_model

if TYPE_CHECKING:
    from chopjax.generate.draft import DraftChoice
    from chopjax.generate.run import Clock
    from chopjax.score.drafting import Drafting

MOST = 128
COLDEST = 1e-6  # logits divided by less may be beyond float32

EXAMPLE = """\
chopjax generate healed --prompts prompts.jsonl --max-new-tokens 100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_scoring_model(parser)
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="what the text begins with")
    add(
        "--prompts",
        action="append",
        metavar="FILE",
        help="JSON lines with a prompt each: a field `prompt`, `messages` or `tokens` (ids); a "
        "folder or hf:NAME, too; may be given several times",
    )
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"where nothing ends a text before (default: generation_config.json's, or {MOST} "
        "and no more than have room)",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="STR",
        help="ends a text, and is not in it; may be given several times",
    )
    add(
        "--ignore-eos",
        action="store_true",
        help="the end-of-text token is one like any other",
    )
    add(
        "--chat",
        action="store_true",
        help="a prompt is what a user says, and goes through the tokenizer's chat template",
    )
    add(
        "--output",
        metavar="FILE",
        help="also write prompts and texts as a corpus for `chopjax prepare`, a JSON line each; "
        "the same command goes on where it was stopped",
    )
    add("--overwrite", action="store_true", help="replace the file of --output")
    add("--json", action="store_true", help="print a JSON object for each prompt, then a summary")
    add = parser.add_argument_group("drawing").add_argument
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="draw tokens, with logits divided by T (default: 0, the likeliest token)",
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw among the likeliest tokens that have this probability together (default: 1)",
    )
    add("--seed", type=int, default=0, metavar="S", help="of the draws (default: 0)")
    add = parser.add_argument_group(
        "speculative decoding", "A draft writes ahead; the text stays the model's own."
    ).add_argument
    add("--draft", metavar="CHOP", help="a checkpoint with the same tokenizer")
    add("--draft-keep", metavar="LIST", help='layers of the model itself, such as "0,13-23"')
    add("--draft-strategy", metavar="S", help="the layers that a strategy by name keeps")
    add("--draft-remove", metavar="N", help="how many layers, or which share, it removes")
    add(
        "--draft-length",
        default="auto",
        metavar="K",
        help="tokens of a draft (default: auto, what is fastest by what the first rounds measure)",
    )


def run(args: argparse.Namespace) -> int:
    import json

    from chopjax import interrupts
    from chopjax.data.chat_template import choose_template
    from chopjax.data.tokenizer import build, fingerprint, whole_text_backend
    from chopjax.disk.files import expanded
    from chopjax.errors import UserError
    from chopjax.generate.draft import open_draft
    from chopjax.generate.prompts import Prompt, check_room, encode, read_prompts
    from chopjax.generate.run import Clock, corpus_row, journal_folder, replies, write_corpus
    from chopjax.generate.voice import Stream, Voice, special_stops
    from chopjax.score.chat import Template
    from chopjax.score.decoding import read_generation_config, read_rules
    from chopjax.score.drafting import Drafting
    from chopjax.score.encoding import Encoder
    from chopjax.score.generation import Asked
    from chopjax.score.journal import Journal
    from chopjax.score.model import open_engine, use_compilation_cache
    from chopjax.score.next_token import Choice, Sampling
    from chopjax.score.run import identity

    choice, length = _check(args)
    output = expanded(args.output) if args.output is not None else None
    if output and output.is_dir():
        raise UserError(f"--output {output} is a folder; a file name is needed")
    if output and output.exists() and not args.overwrite:
        raise UserError(f"--output {output} exists; give another name or --overwrite")
    if args.prompt is not None:
        prompts = [Prompt("prompt", args.prompt)]
    else:
        prompts = read_prompts(args.prompts)
    use_compilation_cache()
    loaded, engine = open_engine(
        args.model,
        args.revision,
        args.dtype,
        None,
        args.batch_size,
        args.fsdp,
        args.tensor,
        args.weights,
    )
    tokenizer = build(loaded.folder, loaded.name)
    begins = tokenizer.bos_token_id
    begins = tokenizer.eos_token_id if begins is None else begins
    if begins is None:
        raise UserError(f"{loaded.name}: the tokenizer has neither a BOS nor an EOS token")
    chosen = None
    if args.chat or any(prompt.kind == "messages" for prompt in prompts):
        chosen = choose_template(tokenizer, True, loaded.name, "--chat")
    template = Template(tokenizer, loaded.name, chosen)
    ids = encode(prompts, Encoder(tokenizer, None, begins), template, args.chat)
    options = read_generation_config(loaded.folder)
    _check_options(loaded.name, options)
    rules = read_rules(options, loaded.name)
    room = max(1, engine.max_length - max(map(len, ids)))
    most = args.max_new_tokens or rules.max_new_tokens or min(MOST, room)
    check_room(ids, most, engine.max_length)
    ends = () if args.ignore_eos else (*rules.eos_token_id, tokenizer.eos_token_id)
    eos_ids = special_stops(tokenizer, args.stop).union(one for one in ends if one is not None)
    sampling = Sampling(args.temperature, args.top_p)
    asked = Asked(most, eos_ids, Choice(rules, sampling), args.seed)
    voice, clock = Voice(tokenizer, args.stop), Clock()
    drafting, named = None, ""
    if choice.given:
        backend = whole_text_backend(tokenizer)
        mark = fingerprint(backend, backend.encode_special_tokens)
        named, draft = open_draft(choice, engine, mark, args.fsdp, args.tensor, args.weights)
        drafting = Drafting(engine, draft, length)
    journal = None
    if output:
        journal = Journal(journal_folder(output), identity(loaded, engine))
        interrupts.advise("the texts so far are kept, and the same command goes on from there")
    alone = len(prompts) == 1 and not args.json
    stream = Stream(voice, lambda text: print(text, end="", flush=True))

    def hear(number: int, new: list[int]) -> None:
        if alone:
            stream.hear(new)

    rows = []
    for number, reply in replies(engine, ids, asked, voice, clock, drafting, journal, hear):
        prompt = prompts[number]
        if output:
            rows.append(corpus_row(prompt, ids[number], reply, voice, args.chat))
        if args.json:
            print(json.dumps({"prompt": prompt.said, **vars(reply)}), flush=True)
        elif alone:
            stream.end(reply.text)
        else:
            print(f"[{number + 1}] {_short(prompt.said)}\n{reply.text}\n", flush=True)
    if output and journal:
        write_corpus(output, rows, journal, args.overwrite)
    summary = _summary(args.model, len(prompts), clock, drafting, named)
    if args.json:
        print(json.dumps(summary))
    else:
        _show(summary)
    return 0


def _check(args: argparse.Namespace) -> tuple[DraftChoice, int | None]:
    """The draft, and its length, None for auto. Raises UserError for flags that make no sense."""
    import math

    from chopjax.errors import UserError
    from chopjax.generate.draft import DraftChoice
    from chopjax.score.drafting import MOST as LONGEST

    check_scoring_model(args)
    check_count("--max-new-tokens", args.max_new_tokens)
    if (args.prompt is None) == (args.prompts is None):
        raise UserError("one of --prompt and --prompts is needed")
    if args.prompt is not None:
        try:
            args.prompt.encode()
        except UnicodeEncodeError:
            raise UserError("--prompt: it is no text in UTF-8") from None
    heat = args.temperature
    if heat and not (math.isfinite(heat) and heat >= COLDEST):
        raise UserError(f"--temperature {heat}: 0, or a number from {COLDEST} is needed")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p {args.top_p}: above 0, and 1 at most")
    if args.top_p < 1 and not args.temperature:
        raise UserError("--top-p is for drawing; give --temperature, too")
    if not 0 <= args.seed < 1 << 32:
        raise UserError(f"--seed {args.seed}: from 0, and below 2^32")
    if "" in args.stop:
        raise UserError("--stop: an empty string would end every text at once")
    if args.overwrite and not args.output:
        raise UserError("--overwrite is for --output")
    choice = DraftChoice(args.draft, args.draft_keep, args.draft_strategy, args.draft_remove)
    choice.check()
    if args.draft_length == "auto":
        return choice, None
    if not choice.given:
        raise UserError("--draft-length is for a draft; give --draft or --draft-keep, too")
    if args.draft_length not in map(str, range(1, LONGEST + 1)):
        raise UserError(f"--draft-length {args.draft_length}: from 1 to {LONGEST}, or auto")
    return choice, int(args.draft_length)


def _check_options(name: str, options: dict[str, Any]) -> None:
    from chopjax.errors import UserError
    from chopjax.score.decoding import GENERATION_CONFIG, refused

    if problems := refused(options):
        raise UserError(
            f"{name}: chopjax does not know {', '.join(problems)} of its {GENERATION_CONFIG}, "
            "which would change the text; take it out of the file"
        )


def _short(said: Any) -> str:
    import json

    from chopjax.errors import readable

    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    text = " ".join(readable(text).split())
    return text if len(text) <= 76 else text[:75] + "…"


def _summary(
    model: str, prompts: int, clock: Clock, drafting: Drafting | None, named: str
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "model": model,
        "prompts": prompts,
        "resumed": prompts - clock.prompts,
        "tokens": clock.tokens,
        "seconds": clock.seconds,
        "tokens_per_second": clock.tokens_per_second,
        "draft": None,
    }
    if drafting is not None and (pace := drafting.pace) is not None:
        summary["draft"] = {"name": named, "length": drafting.length, "cost": pace.cost}
        measured = bool(pace.round)  # not where texts end with their first token
        summary["draft"] |= {
            "tokens_per_round": pace.tokens_a_round if measured else None,
            "acceptance": pace.acceptance if measured else None,
            "ratio": pace.gain if measured else None,
            "best_length": pace.best_length() if measured else None,
        }
    return summary


def _show(summary: dict[str, Any]) -> None:
    """On standard error: the text is the result."""
    from rich.table import Table

    from chopjax.progress import say
    from chopjax.score.drafting import FIRST_LENGTH, ROUNDS
    from chopjax.terminal import console

    table = Table(box=None, show_header=False)
    if summary["resumed"]:
        table.add_row("prompts of an earlier run", f"{summary['resumed']:,}")
    table.add_row("new tokens", f"{summary['tokens']:,}")
    table.add_row("tokens/s", f"{summary['tokens_per_second']:.1f}")
    if draft := summary["draft"]:
        table.add_row("draft", draft["name"])
        length = draft["length"] or f"{FIRST_LENGTH} for {ROUNDS} rounds, then none"
        table.add_row("tokens of a draft", str(length))
        table.add_row("a draft token's cost c", f"{draft['cost']:.3f} of the model's")
        if draft["ratio"] is None:
            table.add_row("acceptance α", "not measured: there were too few rounds")
        else:
            table.add_row("tokens a round", f"{draft['tokens_per_round']:.2f}")
            table.add_row("acceptance α", f"{draft['acceptance']:.3f}")
            faster = f"{draft['ratio']:.2f}x its speed, measured in this run"
            table.add_row("to plain decoding", faster)
    console(stderr=True).print(table)
    if (draft := summary["draft"]) and draft["best_length"] == 0:
        say(
            "There is nothing to win with this draft: it costs as much as it brings (α must be "
            "well above c)."
        )
