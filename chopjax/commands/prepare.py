"""`chopjax prepare`: text → token store."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chopjax import interrupts
from chopjax.errors import UserError

if TYPE_CHECKING:
    from chopjax.data.store import TokenStore
    from chopjax.train.offline_teacher import Question


EXAMPLE = """\
chopjax prepare corpus.jsonl --tokenizer PARENT --output tokens
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="file, folder or pattern of .jsonl or .txt files, also with .gz or .zst, local or "
        "behind a URL (gs://…); tfds:NAME[/CONFIG][:SPLIT], prepared in $TFDS_DATA_DIR; "
        "hf:NAME[/CONFIG][@REVISION][:SPLIT] or hf:FOLDER[:SPLIT]",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="folder or hub id of the model that will be trained on the store",
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="branch, tag or commit of a hub id in --tokenizer (default: main)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write; appears when everything is in it"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a CPU); the result does not depend on it",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a store, or unfinished work, that was made with other settings",
    )
    parser.add_argument(
        "--verify", metavar="STORE", help="only read a finished store and compare its checksums"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    documents = parser.add_argument_group("documents")
    documents.add_argument(
        "--field",
        metavar="NAME",
        help="field of a JSON line that holds the text (default: text; with --chat, messages)",
    )
    documents.add_argument(
        "--chat",
        action="store_true",
        help="documents are conversations, lists of {role, content}: they go through the "
        "tokenizer's chat template, and loss is on what the assistant says",
    )
    documents.add_argument(
        "--chat-template",
        metavar="FILE",
        help="with --chat: this Jinja template instead of the tokenizer's",
    )
    documents.add_argument(
        "--unit",
        choices=("file", "paragraph", "line"),
        default="file",
        help="what is one document in plain text files (default: file)",
    )
    documents.add_argument(
        "--before",
        choices=("auto", "bos", "eos", "none"),
        default="auto",
        help="token before each document; auto (the default) is bos, or eos where there is no bos; "
        "with --chat none",
    )
    documents.add_argument(
        "--after",
        choices=("none", "eos", "bos"),
        default="none",
        help="token after each document (default: none)",
    )
    documents.add_argument(
        "--held-out",
        metavar="N|FRACTION",
        help="hold out so many documents (500) or such a part of them (0.01), chosen by a hash of "
        "their text; the stores are then DIR/train and DIR/held_out",
    )
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument(
        "--teacher",
        metavar="MODEL",
        help="also write beside the tokens what this model predicts after each of them, for "
        "healing without it in memory; without INPUT, beside those that are in --output already",
    )
    teacher.add_argument(
        "--teacher-revision",
        metavar="REV",
        help="branch, tag or commit of a hub id in --teacher (default: main)",
    )
    teacher.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="how many of the likeliest next tokens are kept (default: 64)",
    )
    teacher.add_argument(
        "--sequence-length",
        type=int,
        metavar="T",
        help="tokens that it reads at a time: data.sequence_length of the training to come",
    )
    teacher.add_argument(
        "--mask-documents",
        action="store_true",
        help="it reads documents apart, as training with data.mask_documents",
    )
    teacher.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help="sequences of a forward pass (default: about 8192 tokens a device)",
    )
    teacher.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        help="of its forward pass; auto (the default) is float32 on CPU and bfloat16 elsewhere",
    )


def run(args: argparse.Namespace) -> int:
    if args.verify:
        if args.inputs or args.output or args.tokenizer or args.teacher:
            raise UserError("--verify takes a finished store and nothing else")
        stores = _verified(args.verify)
    else:
        _check_teacher(args)
        stores = {}
        if args.inputs or not args.teacher:
            stores = _prepared(args)
        if args.teacher:
            stores = _taught(args)
    from chopjax.commands.store_tables import show_stores

    show_stores(stores, args.json)
    return 0


def _check_teacher(args: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together."""
    values = vars(args)
    names = ("teacher_revision", "top_k", "sequence_length", "mask_documents", "batch_size")
    given = [name for name in (*names, "dtype") if values[name] not in (None, False)]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if given and not args.teacher:
        raise UserError(f"{flags}: what a teacher is asked; give --teacher MODEL, too")
    if args.teacher and args.sequence_length is None:
        raise UserError(
            "--teacher reads the windows of the training to come; say how long they are with "
            "--sequence-length"
        )
    if args.teacher and not args.inputs:
        if not args.output:
            raise UserError("missing: --output, the store that the teacher reads")
        if args.tokenizer or args.chat or args.field or args.held_out:
            raise UserError(
                "missing: INPUT. Without it the teacher reads the store that is in --output "
                "already, as it is, and nothing is said of tokenizer or documents"
            )


def _question(args: argparse.Namespace) -> Question:
    from chopjax.train.offline_teacher import Question

    return Question(
        args.sequence_length,
        64 if args.top_k is None else args.top_k,
        args.mask_documents,
        args.batch_size,
        args.dtype or "auto",
    )


def _taught(args: argparse.Namespace) -> dict[str, TokenStore]:
    from chopjax.data.store import open_stores
    from chopjax.train.offline_teacher import ask_teacher

    interrupts.advise("what is finished is kept, and the same command goes on from there")
    # Where there is text, --overwrite was about the store, and what was said of it went along.
    overwrite = args.overwrite and not args.inputs
    ask_teacher(args.output, args.teacher, _question(args), args.teacher_revision, overwrite)
    return open_stores(args.output)


def _verified(path: str) -> dict[str, TokenStore]:
    from chopjax.commands.store_tables import verify_stores
    from chopjax.data.store import open_stores

    stores = open_stores(path)
    verify_stores(stores)
    return stores


def _prepared(args: argparse.Namespace) -> dict[str, TokenStore]:
    missing = [
        name
        for name, value in (
            ("INPUT", args.inputs),
            ("--tokenizer", args.tokenizer),
            ("--output", args.output),
        )
        if not value
    ]
    if missing:
        raise UserError(f"missing: {', '.join(missing)} (or --verify STORE)")
    if args.chat_template and not args.chat:
        raise UserError("--chat-template is for conversations; give --chat, too")
    interrupts.advise("what is finished is kept, and the same command goes on from there")
    from chopjax.data.prepare import prepare
    from chopjax.data.tokenizer import load_tokenizer

    tokenizer, chat = load_tokenizer(args.tokenizer, args.revision), None
    if args.chat:
        from chopjax.data.chat import load_chat

        chat = load_chat(args.tokenizer, tokenizer, args.revision, args.chat_template)
    if args.teacher:  # before the tokens, which may take hours
        from chopjax.train.offline_teacher import check_question

        revision = args.teacher_revision
        check_question(args.teacher, _question(args), revision, tokenizer.fingerprint)
    return prepare(
        args.inputs,
        tokenizer,
        args.output,
        field=args.field,
        unit=args.unit,
        chat=chat,
        before=args.before,
        after=args.after,
        held_out=args.held_out,
        workers=args.workers,
        overwrite=args.overwrite,
    )
