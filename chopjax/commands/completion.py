"""`chopjax completion`: what lets a shell complete verbs, flags and files."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")
EXAMPLE = """\
chopjax completion bash > ~/.local/share/bash-completion/completions/chopjax
chopjax completion zsh  > ~/.zsh/completions/_chopjax   # a folder of $fpath
chopjax completion fish > ~/.config/fish/completions/chopjax.fish
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    import shtab

    from chopjax.commands.parser import parser_of_all

    parser = parser_of_all()
    _name_files(parser)
    print(shtab.complete(parser, args.shell))
    return 0


def _name_files(parser: argparse.ArgumentParser) -> None:
    """Say which arguments are files or folders, by what their help calls them."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _name_files(verb)
        elif action.metavar in ("DIR", "OUT", "STORE"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in ("FILE", "MODEL", "RESULTS", "INPUT", "PATH"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
