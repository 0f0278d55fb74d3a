"""`chopjax VERB …`: one file a verb in chopjax/commands, imported when it is asked for."""

from __future__ import annotations

import io
import os
import sys

from chopjax import plain_text
from chopjax.checkpoint.atomic import USERS_ERRORS
from chopjax.commands import parser
from chopjax.commands.flags import print_config
from chopjax.errors import UserError
from chopjax.hardware import skip_absent_tpu


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 2 for the user's mistakes, 130 for Ctrl-C."""
    skip_absent_tpu()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=plain_text.ERRORS)
    arguments = parser.parse(sys.argv[1:] if argv is None else argv)
    # transformers advises to install torch; its tokenizers do without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        if getattr(arguments, "print_config", False):
            return print_config(arguments)
        return parser.command(arguments.verb).run(arguments) or 0
    except UserError as error:
        print(f"chopjax {arguments.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
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
