"""`chopjax lm-eval`: lm-evaluation-harness's own command line, which knows the model `chopjax`.

The harness finds models of other packages by the entry point `lm_eval.models`, of which
pyproject.toml has one, from the release after 0.4.13 on. 0.4.13 has to be told.
"""

from __future__ import annotations

import argparse
import sys

from chopjax import transformers_alone

EXAMPLE = "chopjax lm-eval --model chopjax --model_args pretrained=healed --tasks piqa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For completion; what is written after the verb is never looked at here."""
    parser.add_argument(
        "words", nargs="...", metavar="ARGUMENT", help="as lm-evaluation-harness takes them"
    )


def run(args: argparse.Namespace) -> int:
    transformers_alone.with_others()
    import lm_eval.models  # noqa: F401 - what registers the harness's own models; they come first
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "chopjax" not in model_registry:
        model_registry.register("chopjax", target="chopjax.score.harness:ChopjaxLM")
    helps = not args.words or "-h" in args.words or "--help" in args.words
    if not helps:
        from chopjax.score.model import use_compilation_cache

        use_compilation_cache()
    before, sys.argv = sys.argv, ["lm-eval", *args.words]
    try:
        cli_evaluate()  # ends the program after its help, and where a flag is wrong
    finally:
        sys.argv = before
        if helps:
            print(f"\nexample:\n  {EXAMPLE}")
    return 0
