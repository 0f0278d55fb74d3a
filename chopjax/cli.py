"""`chopjax VERB …`: one file a verb in chopjax/commands, imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from types import ModuleType

# What takes its time to import is imported where Ctrl-C is taken care of already.
from chopjax import __version__, interrupts
from chopjax.errors import UserError

# Verb → what `chopjax --help` says of it. chopjax/commands/VERB.py has add_arguments and run;
# a verb that is a Python keyword lives in VERB_.py.
VERBS = {
    "inspect": "what a checkpoint holds: shapes, parameters, bytes, memory and FLOPs",
    "import": "Hugging Face checkpoint to Orbax, parameters born sharded on the mesh",
    "export": "Orbax to Hugging Face checkpoint, byte for byte",
    "analyze": "measure which layers matter, draw it, and recommend which to remove",
    "chop": "remove layers from a Hugging Face checkpoint without reading them",
    "prepare": "text or JSONL to token store for training",
    "train": "continue pretraining (healing)",
    "perplexity": "token- and byte-level perplexity on a text file",
    "score": "zero-shot tasks, with lm-evaluation-harness's definitions and numbers",
    "compare": "results of several models side by side, with differences and their significance",
    "latency": "forward, prefill and decode time of a model and of its chops",
    "plan": "memory, collectives and time of a training run on a TPU pod that is not there",
    "sweep": "many strategies and numbers of layers, scored and drawn",
    "run": "the whole pipeline: score, chop, score, heal, score, export",
}


def _parser(verb: str | None) -> argparse.ArgumentParser:
    # Abbreviated flags are errors: a typo must never select another flag.
    parser = argparse.ArgumentParser(
        prog="chopjax", description="Chop, heal, score and export.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"chopjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, sentence in VERBS.items():
        command = verbs.add_parser(name, help=sentence, description=sentence, allow_abbrev=False)
        if name == verb:
            _command(name).add_arguments(command)
    return parser


def _command(verb: str) -> ModuleType:
    module = verb + "_" if verb == "import" else verb
    return importlib.import_module(f"chopjax.commands.{module}")


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 2 for the user's mistakes, 130 for Ctrl-C.

    argv: the words after `chopjax`; without them, this is the program that the process is for, and
    signals are its business (interrupts.py).
    """
    if argv is not None:
        return _main(argv)
    with interrupts.program(" ".join(["chopjax", *(w for w in sys.argv[1:2] if w in VERBS)])):
        return _main(sys.argv[1:])


def _main(argv: list[str]) -> int:
    from chopjax.checkpoint.atomic import USERS_ERRORS
    from chopjax.hardware import skip_absent_tpu

    skip_absent_tpu()  # some verbs' flags import jax
    verb = argv[0] if argv and argv[0] in VERBS else None
    # argparse wants every flag declared; a config's fields are the recipe's.
    argv = [re.sub(r"^--config\.", "--set=", word) for word in argv]
    arguments = _parser(verb).parse_args(argv)
    # transformers advises to install torch; its tokenizers do without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our arrows and lines
    try:
        interrupts.check()
        return _command(arguments.verb).run(arguments) or 0
    except UserError as error:
        print(f"chopjax {arguments.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupts.end()  # the program; others who called us go on
        print(f"chopjax {arguments.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); not an error of ours. Point stdout at
        # nothing so that the interpreter's last flush does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        place = error.filename or "a file"
        print(f"chopjax {arguments.verb}: error: {place}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
