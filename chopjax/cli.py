"""`chopjax VERB …`: one file a verb in chopjax/commands, imported when it is asked for."""

from __future__ import annotations

import gc
import io
import os
import sys

# What takes its time to import is imported where Ctrl-C is taken care of already.
from chopjax import interrupts, plain_text, transformers_alone
from chopjax.errors import UserError, readable


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 2 for the user's mistakes, 130 for Ctrl-C; 1 is
    `plan`'s for what does not fit.

    argv: the words after `chopjax`; without them, this is the program that the process is for, and
    signals are its business (interrupts.py).
    """
    if argv is not None:
        return _main(argv)
    # Imports and tracing make some hundred thousand objects that stay: looking through them again
    # and again for garbage is a fifteenth of the time until a first step.
    gc.set_threshold(100_000)
    transformers_alone.in_program()
    verb = [word for word in sys.argv[1:2] if not word.startswith("-")]
    with interrupts.program(" ".join(["chopjax", *verb])):
        return _main(sys.argv[1:])


def _main(argv: list[str]) -> int:
    from chopjax.commands import parser
    from chopjax.commands.flags import print_config
    from chopjax.disk.atomic import USERS_ERRORS
    from chopjax.hardware import skip_absent_tpu

    skip_absent_tpu()  # some verbs' flags import jax
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=plain_text.ERRORS)
    arguments = parser.parse(argv)
    # transformers advises to install torch; its tokenizers do without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        interrupts.check()
        if getattr(arguments, "print_config", False):
            return print_config(arguments)
        return parser.command(arguments.verb).run(arguments) or 0
    except UserError as error:
        print(readable(f"chopjax {arguments.verb}: error: {error}"), file=sys.stderr)
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
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        reason = (str(error) or "of the host").splitlines()[0]
        print(
            f"chopjax {arguments.verb}: error: memory is too small: {reason}. Take smaller "
            "batches, shorter sequences or more devices",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        place = error.filename or "a file"
        print(
            readable(f"chopjax {arguments.verb}: error: {place}: {error.strerror}"), file=sys.stderr
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
