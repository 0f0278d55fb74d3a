"""`~` in paths, wherever one can stand."""

from __future__ import annotations

from pathlib import Path

import pytest

import chopjax
from chopjax import cli
from chopjax.disk.files import expanded
from chopjax.errors import UserError

NOBODY = "~no-such-user-here/x"


def test_home_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a b") == tmp_path / "a b"
    assert expanded("a/~") == Path("a/~")


def test_nobodys_home_and_zero_bytes() -> None:
    with pytest.raises(UserError, match=r"~no-such-user-here has no home folder.*\./~no-such-user"):
        expanded(NOBODY)
    with pytest.raises(UserError, match="zero byte"):
        expanded("a\0b")


def test_no_other_module_expands_paths_by_itself() -> None:
    package = Path(chopjax.__file__).parent
    found = [p for p in package.rglob("*.py") if ".expanduser(" in p.read_text()]
    assert found == [package / "disk" / "files.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", NOBODY],
        ["chop", NOBODY, "out", "--strategy", "first", "--remove", "1"],
        ["chop", "model", NOBODY, "--strategy", "first", "--remove", "1"],
        ["prepare", "a.txt", "--tokenizer", NOBODY, "--output", "out"],
        ["prepare", "--verify", NOBODY],
        ["train", "--config", NOBODY, "--workdir", "out"],
        ["compare", NOBODY],
        ["compare", "a", "--plot", NOBODY],
        ["run", "--config", "recipe.py", "--workdir", NOBODY],
        ["analyze", "model", "--data", "a.txt", "--output", NOBODY],
    ],
)
def test_verbs_say_so(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert "~no-such-user-here has no home folder" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
