"""The command line: verbs, their flags, and what is said where one of them is wrong."""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from chopjax import __version__
from chopjax.errors import did_you_mean

# Verb → what `chopjax --help` says of it. chopjax/commands/VERB.py has add_arguments and run, and
# EXAMPLE for the end of its help; a verb that is a Python keyword lives in VERB_.py, and one with a
# hyphen under its name with an underscore.
VERBS = {
    "inspect": "what a checkpoint holds: shapes, parameters, memory, FLOPs",
    "import": "Hugging Face checkpoint to Orbax, sharded over the devices",
    "export": "Orbax to Hugging Face checkpoint, byte for byte",
    "analyze": "measure which layers matter, and recommend which to remove",
    "chop": "remove layers from a checkpoint without reading them",
    "sparsify": "zeros in a checkpoint's matrices: magnitude, Wanda, SparseGPT",
    "narrow": "fewer hidden units, heads or dimensions, alike in every layer",
    "quantize": "weights in four or eight bits, for transformers and vLLM",
    "prepare": "text or JSONL to token store for training",
    "train": "continue pretraining (healing)",
    "generate": "text from a model, alone or with a chop as its draft",
    "perplexity": "token- and byte-level perplexity on a text file",
    "score": "zero-shot tasks, as lm-evaluation-harness defines them",
    "lm-eval": "lm-evaluation-harness itself, with the model `chopjax`",
    "compare": "results of several models side by side, with significance",
    "classify": "fine-tune what is left to tell classes apart, depth by depth",
    "latency": "forward, prefill and decode time of a model and of its chops",
    "plan": "whether a training run fits a TPU pod, and how long it takes",
    "sweep": "many strategies and numbers of layers, scored and drawn",
    "run": "the whole pipeline: score, chop, score, heal, score, export",
    "completion": "a script that completes verbs and flags in bash, zsh or fish",
}


def command(verb: str) -> ModuleType:
    """The module of a verb."""
    name = "import_" if verb == "import" else verb.replace("-", "_")
    return importlib.import_module(f"chopjax.commands.{name}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of one verb, whose name is `verb`. Ends the program where they are wrong (2), and
    after --help and --version (0)."""
    if argv and argv[0] == "lm-eval":  # its flags, --help among them, are another program's
        return argparse.Namespace(verb=argv[0], words=list(argv[1:]))
    if argv and argv[0] in VERBS:
        parser = verb_parser(argv[0])
        flags: argparse.Namespace
        flags = parser.parse_args(list(argv[1:]), argparse.Namespace(verb=argv[0]))
        return flags
    top = parser_of_all(())
    if argv and not argv[0].startswith("-"):
        near = did_you_mean(argv[0], VERBS)
        top.error(f"there is no verb {argv[0]!r}{near or '; chopjax --help lists them'}")
    flags = top.parse_args(list(argv))
    return flags


def verb_parser(verb: str) -> Parser:
    """The parser of one verb."""
    parser = Parser(prog=f"chopjax {verb}", description=_sentence(VERBS[verb]))
    _fill(parser, verb)
    return parser


def parser_of_all(verbs: Iterable[str] = VERBS) -> Parser:
    """The parser of the whole program, with the flags of these verbs."""
    parser = Parser(
        prog="chopjax",
        description="Remove layers from pretrained decoders, heal what is left, score and export.",
        epilog="`chopjax VERB --help` says more of one.",
    )
    parser.add_argument("--version", action="version", version=f"chopjax {__version__}")
    added = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", required=True)
    for name, sentence in VERBS.items():
        one = added.add_parser(name, help=sentence, description=_sentence(sentence))
        if name in verbs:
            _fill(one, name)
    return parser


def _fill(parser: Parser, verb: str) -> None:
    module = command(verb)
    module.add_arguments(parser)
    if example := getattr(module, "EXAMPLE", ""):
        parser.epilog = "example:\n" + textwrap.indent(textwrap.dedent(example).strip("\n"), "  ")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


class _Help(argparse.HelpFormatter):
    """Folds sentences, and leaves the lines of examples as they are."""

    def __init__(self, prog: str, **more: Any):
        super().__init__(prog, max_help_position=26, **more)

    def _iter_indented_subactions(self, action: argparse.Action) -> Any:
        """Verbs stand as far left as flags: further in, the longer names take two lines."""
        if isinstance(action, argparse._SubParsersAction):
            yield from action._get_subactions()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example:"):
            return text
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """argparse's, with errors that help on.

    Flags may be written with underscores, as lm_eval's are, but not abbreviated: a typo must never
    select another flag. --config.FIELD=VALUE and --config.FIELD VALUE mean --set FIELD=VALUE where
    the verb has --set.
    """

    def __init__(self, **more: Any):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **more)
        self._unheard_of: list[str] = []  # flags of the command line that there are not

    def flags(self) -> list[str]:
        """All of them, in order."""
        return [flag for action in self._actions for flag in action.option_strings]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(self._usual_spelling(args), namespace)

    def _usual_spelling(self, words: Sequence[str]) -> list[str]:
        known = set(self.flags())
        result: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                return [*result, word, *left]
            name, equals, value = word.partition("=")
            if name.startswith("--config.") and "--set" in known:
                if not equals:
                    if not left or left[0].startswith("--"):
                        self.error(f"{name}: a value is missing; write {name}=VALUE")
                    value = left.pop(0)
                word = f"--set={name.removeprefix('--config.')}={value}"
            elif name.startswith("--") and name not in known:
                usual = name.replace("_", "-")
                if usual in known:
                    word = usual + equals + value
                else:
                    self._unheard_of.append(name)
            result.append(word)
        return result

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed

    def _unknown(self, words: Sequence[str]) -> str:
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            return f"unexpected argument: {' '.join(words)}"
        if flag.startswith("--config."):
            return f"there is no flag {flag}: this verb takes no recipe"
        near = did_you_mean(flag.replace("_", "-"), self.flags())
        return f"there is no flag {flag}{near or f'; {self.prog} --help lists them'}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = did_you_mean(str(value), known)
            raise argparse.ArgumentError(
                action, f"{value!r} is not one of {', '.join(known)}{near}"
            )

    def error(self, message: str) -> NoReturn:
        """One line on what is wrong and one on how the verb is called. Where something is missing
        and a flag was given that the verb does not have, that flag is what is wrong."""
        if message.endswith("required") or message.startswith("the following arguments are"):
            message = self._unknown(self._unheard_of) if self._unheard_of else message
        message = re.sub("^the following arguments are required: ", "missing: ", message)
        message = re.sub("^one of the arguments (.*) is required$", r"missing: one of \1", message)
        message = re.sub("^argument (?=-)", "", message)
        self.exit(2, f"{self.prog}: error: {message}\n{self._short_usage()}")

    def _short_usage(self) -> str:
        """What must be given, alone."""
        words = [_spelt(action) for action in self._actions if action.required]
        for group in self._mutually_exclusive_groups:
            if group.required:
                words.append(f"({' | '.join(map(_spelt, group._group_actions))})")
        return f"usage: {' '.join([self.prog, *words])} …\nAll flags: {self.prog} --help\n"


def _spelt(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.option_strings:
        return f"{action.option_strings[0]} {name}"
    return f"{name} [{name} …]" if action.nargs == "+" else name
