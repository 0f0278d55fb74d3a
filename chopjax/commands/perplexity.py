"""`chopjax perplexity`: token- and byte-level perplexity of a model on text."""

from __future__ import annotations

import argparse

from chopjax.commands.flags import add_scoring_model, check_scoring_model

EXAMPLE = """\
chopjax perplexity healed --data held_out.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_scoring_model(parser)
    add = parser.add_argument
    add(
        "--data",
        required=True,
        action="append",
        metavar="FILE",
        help="text: .jsonl, .txt, a folder or hf:NAME; may be given several times",
    )
    add("--field", default="text", help="of a JSON line, the field with the text (default: text)")
    add(
        "--context-length",
        type=int,
        metavar="N",
        help="ids in a window (default: the model's context length)",
    )
    add(
        "--truncate",
        action="store_true",
        help="take the first N ids of each document, BOS included, and leave the rest out",
    )
    add("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    from rich.table import Table

    from chopjax.data.tokenizer import load_tokenizer
    from chopjax.models.quantized import kind_of
    from chopjax.score.model import open_engine, use_compilation_cache
    from chopjax.score.perplexity import perplexity, read_texts
    from chopjax.terminal import console, print_json

    check_scoring_model(args)
    texts = read_texts(args.data, args.field)  # a typo is found before the model is loaded
    use_compilation_cache()
    loaded, engine = open_engine(
        args.model,
        args.revision,
        args.dtype,
        args.context_length,
        args.batch_size,
        args.fsdp,
        args.tensor,
        args.weights,
    )
    tokenizer = load_tokenizer(loaded.folder)
    figures = perplexity(engine, tokenizer, texts, args.truncate)
    held = {"weights": kind_of(engine.params)}
    result = {"model": args.model, **held, "data": args.data} | figures
    if args.json:
        print_json(result)
        return 0
    table = Table(box=None, show_header=False)
    for name, text in (
        ("nats per token", f"{result['nats_per_token']:.4f}"),
        ("perplexity", f"{result['perplexity']:.3f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("perplexity by byte", f"{result['byte_perplexity']:.4f}"),
        ("loss / log V", f"{result['loss_over_log_vocabulary']:.4f}"),
        ("predicted tokens", f"{result['tokens']:,}"),
        ("bytes", f"{result['bytes']:,}"),
        ("documents", f"{result['documents']:,}"),
        ("tokenizer", f"{tokenizer.vocab_size:,} ids, {tokenizer.fingerprint[:12]}"),
        ("convention", result["convention"]),
    ):
        table.add_row(name, text)
    console().print(table)
    return 0
