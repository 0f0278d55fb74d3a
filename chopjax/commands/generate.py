"""`chopjax generate`: text from a model, alone or with a chop as its draft."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chopjax.commands.flags import add_scoring_model, check_count, check_scoring_model

if TYPE_CHECKING:
    import numpy as np

    from chopjax.checkpoint.load import Description, Loaded
    from chopjax.generate.draft import DraftChoice, FoundDraft
    from chopjax.generate.prompts import Prompt
    from chopjax.generate.run import Reply
    from chopjax.generate.voice import Stream
    from chopjax.score.engine import Engine
    from chopjax.score.generation import Asked
    from chopjax.score.journal import Journal

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

    from chopjax.checkpoint.describe import describe
    from chopjax.data.tokenizer import build
    from chopjax.generate.prompts import Prompt, encode_for, read_prompts
    from chopjax.generate.run import Clock, corpus_row, replies, write_corpus
    from chopjax.generate.voice import Stream, Voice
    from chopjax.report import generated
    from chopjax.score.drafting import Drafting
    from chopjax.score.model import open_engine, use_compilation_cache

    choice, length = _check(args)
    output = _output(args)
    alone = args.prompt is not None
    prompts = [Prompt("prompt", args.prompt)] if alone else read_prompts(args.prompts)
    # Whatever can be wrong is found before weights are read.
    model = describe(args.model, args.revision, quantized=True)
    tokenizer = build(model.folder, model.name)
    found = _find_draft(choice, model, tokenizer) if choice.given else None
    ids = encode_for(model, tokenizer, prompts, args.chat)
    asked = _asked(args, ids, model, tokenizer)
    use_compilation_cache()
    devices = args.fsdp, args.tensor, args.weights
    loaded, engine = open_engine(model, None, args.dtype, None, args.batch_size, *devices)
    drafting = Drafting(engine, found.open(engine, *devices), length) if found else None
    journal = _journal(args, output, loaded, engine, found) if output else None
    voice, clock = Voice(tokenizer, args.stop), Clock()
    stream = None
    if len(prompts) == 1 and not args.json:
        stream = Stream(voice, lambda text: print(text, end="", flush=True))

    def hear(number: int, new: list[int]) -> None:
        if stream:
            stream.hear(new)

    rows = []
    for number, reply in replies(engine, ids, asked, voice, clock, drafting, journal, hear):
        _print(args, number, prompts[number], reply, stream)
        if output:
            rows.append(corpus_row(prompts[number], ids[number], reply, voice, args.chat))
    if output and journal:
        write_corpus(output, rows, journal, args.overwrite)
    named = found.name if found else None
    summary = generated.summary(args.model, len(prompts), clock, drafting, named)
    if args.json:
        print(json.dumps(summary))
    else:
        generated.show(summary)
    return 0


def _check(args: argparse.Namespace) -> tuple[DraftChoice, int | None]:
    """The draft, and its length, None for auto. Raises UserError for flags that make no sense."""
    import math

    from chopjax.errors import UserError
    from chopjax.generate.draft import DraftChoice, parse_length

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
    if args.draft_length != "auto" and not choice.given:
        raise UserError("--draft-length is for a draft; give --draft or --draft-keep, too")
    return choice, parse_length(args.draft_length)


def _output(args: argparse.Namespace) -> Path | None:
    from chopjax.disk.files import expanded
    from chopjax.errors import UserError

    if args.output is None:
        return None
    output = expanded(args.output)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; a file name is needed")
    if output.exists() and not args.overwrite:
        raise UserError(f"--output {output} exists; give another name or --overwrite")
    return output


def _find_draft(choice: DraftChoice, model: Description, tokenizer: Any) -> FoundDraft:
    from chopjax.data.tokenizer import fingerprint, whole_text_backend
    from chopjax.generate.draft import find_draft

    backend = whole_text_backend(tokenizer)
    return find_draft(choice, model, fingerprint(backend, backend.encode_special_tokens))


def _asked(
    args: argparse.Namespace, ids: list[np.ndarray], model: Description, tokenizer: Any
) -> Asked:
    """How the model goes on. Raises UserError where there is no room behind a prompt, and for rules
    of the model's that chopjax does not know."""
    from chopjax.errors import UserError
    from chopjax.generate.prompts import check_room
    from chopjax.generate.voice import special_stops
    from chopjax.score.decoding import (
        GENERATION_CONFIG,
        read_generation_config,
        read_rules,
        refused,
    )
    from chopjax.score.generation import Asked
    from chopjax.score.next_token import Choice, Sampling

    options = read_generation_config(model.folder)
    if problems := refused(options):
        raise UserError(
            f"{model.name}: chopjax does not know {', '.join(problems)} of its "
            f"{GENERATION_CONFIG}, which would change the text; take it out of the file"
        )
    rules = read_rules(options, model.name)
    room = max(1, model.config.max_positions - max(map(len, ids)))
    most = args.max_new_tokens or rules.max_new_tokens or min(MOST, room)
    check_room(ids, most, model.config.max_positions)
    ends = () if args.ignore_eos else (*rules.eos_token_id, tokenizer.eos_token_id)
    eos_ids = special_stops(tokenizer, args.stop).union(one for one in ends if one is not None)
    return Asked(most, eos_ids, Choice(rules, Sampling(args.temperature, args.top_p)), args.seed)


def _journal(
    args: argparse.Namespace, output: Path, loaded: Loaded, engine: Engine, draft: FoundDraft | None
) -> Journal:
    """Remembers replies until the corpus is written. Drawn text depends on the draft, too."""
    from chopjax import interrupts
    from chopjax.generate.run import journal_folder
    from chopjax.score.journal import Journal
    from chopjax.score.run import identity

    known = dict(identity(loaded, engine))
    if draft and args.temperature:
        known["draft"] = {**draft.identity(), "length": args.draft_length}
    interrupts.advise("the texts so far are kept, and the same command goes on from there")
    return Journal(journal_folder(output), known)


def _print(
    args: argparse.Namespace, number: int, prompt: Prompt, reply: Reply, stream: Stream | None
) -> None:
    import json

    if stream:
        stream.end(reply.text)
    elif args.json:
        print(json.dumps({"prompt": prompt.said, **vars(reply)}), flush=True)
    else:
        print(f"[{number + 1}] {_short(prompt.said)}\n{reply.text}\n", flush=True)


def _short(said: Any) -> str:
    import json

    from chopjax.errors import readable

    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    text = " ".join(readable(text).split())
    return text if len(text) <= 76 else text[:75] + "…"
