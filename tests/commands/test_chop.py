"""`chopjax chop` as a stranger uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from chopjax import cli


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("chop") / "parent", num_hidden_layers=8)


def test_prints_what_stays_and_what_goes(parent, tmp_path, capsys):
    assert cli.main(["chop", str(parent), str(tmp_path / "out"), "--keep", "0,5-7"]) == 0
    out = capsys.readouterr().out
    assert "kept layers     0,5-7\n" in out
    assert "removed layers  1-4\n" in out
    assert "inclusive" in out
    for row in ("layers", "parameters", "tensors", "bytes"):
        assert row in out
    assert (tmp_path / "out" / "config.json").is_file()


def test_json_is_one_object(parent, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["chop", str(parent), str(out), "--strategy", "max-gap", "--remove", "50%"]
    assert cli.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept_layers"] == [0, 2, 5, 7]
    assert result["removed_layers"] == [1, 3, 4, 6]
    assert result["strategy"] == "max-gap"
    assert result["settings"] == {"remove": 4}
    assert (result["before"]["layers"], result["after"]["layers"]) == (8, 4)
    files = out.glob("*.safetensors")
    assert 0 < sum(f.stat().st_size for f in files) - result["after"]["bytes"] < 10_000
    assert json.loads((out / "chopjax.json").read_text())["kept_layers"] == [0, 2, 5, 7]


def test_dry_run_writes_nothing(parent, tmp_path, capsys):
    arguments = ["chop", str(parent), str(tmp_path / "out"), "--strategy", "first", "--remove", "7"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "kept layers     0\n" in shown
    assert "would be written" in shown
    assert cli.main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("", "give --strategy NAME and --remove N, or --keep LIST"),
        ("--strategy input", "give --strategy NAME and --remove N"),
        ("--remove 2", "give --strategy NAME and --remove N"),
        ("--keep 0 --remove 2", "leave --strategy and --remove out"),
        ("--strategy imput --remove 2", "'imput' is not one of input, output"),
        ("--strategy input --remove 7", "can remove 1 to 6 of 8 layers, not 7"),
        ("--strategy input --remove 0", "from 1 to 7 of the 8 layers"),
        ("--keep 0,8", "no layer 8; the model's 8 layers are numbered 0-7"),
        ("--keep 0-7", "nothing would be removed"),
        ("--keep 0 --max-shard-size 5", None),
        ("--keep 0 --max-shard-size big", "a size such as 500MB"),
        ("--keep 0 --max-shard-size 0GB", "a size such as 500MB"),
    ],
)
def test_mistakes(parent, tmp_path, capsys, flags, complaint):
    code = cli.main(["chop", str(parent), str(tmp_path / "out"), *flags.split()])
    if complaint is None:  # small, but possible: a file a tensor
        assert code == 0
        return
    captured = capsys.readouterr()
    assert code == 2
    assert complaint in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_a_wrong_folder(tmp_path, capsys):
    assert cli.main(["chop", str(tmp_path), str(tmp_path / "out"), "--keep", "0"]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_a_model_of_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "model", num_hidden_layers=1)
    out = str(tmp_path / "out")
    assert cli.main(["chop", str(model), out, "--strategy", "middle", "--remove", "1"]) == 2
    assert "one layer" in capsys.readouterr().err
    assert cli.main(["chop", str(model), out, "--keep", "0"]) == 2
    assert not (tmp_path / "out").exists()
