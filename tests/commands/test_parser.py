"""The command line: what may be written, and what is said where it is wrong."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from chopjax import cli
from chopjax.commands import parser

ROOT = Path(__file__).parents[2]
RECIPE = ["train", "--config", str(ROOT / "configs" / "heal.py"), "--workdir", "w"]


@pytest.mark.parametrize("verb", parser.VERBS)
def test_help_shows_defaults_and_an_example(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"example:\n  chopjax {verb} " in shown
    assert verb == "lm-eval" or max(map(len, shown.splitlines())) <= 80  # the harness's own help
    for line in parser.command(verb).EXAMPLE.replace("\\\n", "").splitlines():
        parser.parse(line.partition(" #")[0].partition(" >")[0].split()[1:])  # its own advice


def test_help_has_a_line_for_every_verb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for verb, sentence in parser.VERBS.items():
        assert f"  {verb:<10}  {sentence}" in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "there is no verb 'trian'; did you mean train?"),
        (["frobnicate"], "there is no verb 'frobnicate'; chopjax --help lists them"),
        ([], "missing: VERB"),
        (["train"], "missing: --config, --workdir"),
        (["compare"], "missing: RESULTS"),
        ([*RECIPE, "--forse"], "there is no flag --forse; did you mean --force"),
        ([*RECIPE, "--work", "x"], "there is no flag --work; did you mean --workdir?"),
        (["quantize", "a", "b", "--wieghts", "int8"], "no flag --wieghts; did you mean --weights?"),
        ([*RECIPE, "--xyzzy=1"], "there is no flag --xyzzy; chopjax train --help lists them"),
        ([*RECIPE, "more"], "unexpected argument: more"),
        ([*RECIPE, "--config.total_steps"], "--config.total_steps: a value is missing"),
        ([*RECIPE, "--config.seed", "--force"], "--config.seed: a value is missing"),
        (["chop", "a", "b", "--config.seed=1"], "there is no flag --config.seed"),
        (["perplexity", "m", "--data", "d", "--dtype", "float23"], "did you mean float32"),
        (
            ["perplexity", "m", "--data", "d", "--batch-size", "x"],
            "a number or auto is needed, not 'x'",
        ),
        (["completion", "bsh"], "did you mean bash?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_short_and_help_on(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in message.splitlines()[0]
    verb = words[0] if words and words[0] in parser.VERBS else ""
    assert message.splitlines()[1].startswith(f"usage: chopjax {verb}".rstrip())
    assert len(message.splitlines()) == 3


def test_usage_names_what_must_be_given() -> None:
    assert (
        parser.verb_parser("train")
        ._short_usage()
        .startswith("usage: chopjax train --config FILE --workdir DIR …\n")
    )
    assert "[RESULTS …]" in parser.verb_parser("compare")._short_usage()


@pytest.mark.parametrize(
    "field",
    [["--config.total_steps=7"], ["--config.total_steps", "7"], ["--set", "total_steps=7"]],
    ids=" ".join,
)
def test_a_field_is_set_with_or_without_equals_sign(field: list[str]) -> None:
    assert parser.parse([*RECIPE, *field]).set == ["total_steps=7"]


def test_a_field_may_be_negative_and_hold_spaces_and_equals_signs() -> None:
    words = ["--config.mesh.fsdp", "-1", "--config.data.train", "a b=1,c=2"]
    assert parser.parse([*RECIPE, *words]).set == ["mesh.fsdp=-1", "data.train=a b=1,c=2"]


@pytest.mark.parametrize("verb", parser.VERBS)
def test_every_flag_may_have_underscores(verb: str) -> None:
    one = parser.verb_parser(verb)
    flags = [flag for flag in one.flags() if "-" in flag[2:]]
    words = [f"--{flag[2:].replace('-', '_')}=x" for flag in flags]
    assert one._usual_spelling(words) == [f"{flag}=x" for flag in flags]


def test_what_follows_two_dashes_is_left_alone() -> None:
    words = ["--", "--batch_size", "--config.seed=1"]
    assert parser.verb_parser("train")._usual_spelling(words) == words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_flags_and_choices(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*parser.VERBS, "print-config", "max-shard-size", "just_chop_v1"):
        assert word in script


def test_completion_in_bash() -> None:
    script = subprocess.run(
        [sys.executable, "-m", "chopjax", "completion", "bash"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_chopjax; "
        done = subprocess.run(
            ["bash"],
            input=script + ask + 'printf "%s\\n" "${COMPREPLY[@]}"',
            check=True,
            capture_output=True,
            text=True,
        )
        return set(done.stdout.split())

    assert completed("chopjax", "tr") == {"train"}
    assert "--print-config" in completed("chopjax", "train", "--pr")
    assert completed("chopjax", "score", "m", "--suite", "just") == {"just_chop", "just_chop_v1"}


def test_flags_cost_no_jax() -> None:
    """The errors and the help of every verb come at once."""
    code = (
        "import sys; from chopjax.commands import parser; parser.parser_of_all()\n"
        "print(sorted({'jax', 'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chopjax", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("chopjax ")


def test_print_config_wants_no_workdir() -> None:
    parsed = parser.parse([*RECIPE[:3], "--print-config"])
    assert isinstance(parsed, argparse.Namespace)
    assert parsed.print_config
