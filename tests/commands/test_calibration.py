"""What sparsify, narrow and quantize share."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import pytest

from chopjax.cli import main


@pytest.mark.parametrize(
    "words",
    [
        ["sparsify", "--method", "wanda", "--pattern", "2:4"],
        ["narrow", "--method", "activation", "--mlp", "0.5"],
        ["quantize", "--method", "gptq", "--weights", "int8"],
    ],
    ids=lambda words: words[0],
)
def test_a_record_that_cannot_go_on_is_found_before_the_text_is_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, chopped = checkpoints.write_checkpoint(tmp_path / "p"), tmp_path / "chopped"
    assert main(["chop", str(parent), str(chopped), "--keep", "0,1"]) == 0
    path = chopped / "chopjax.json"
    record = json.loads(path.read_text())
    left = sorted(tmp_path.iterdir())
    verb, *flags = words
    for text, said in (
        (json.dumps(record | {"kept_layers": [0]}), "records 1 kept layers and config.json has 2"),
        ("{", "chopjax.json: not valid JSON"),
    ):
        path.write_text(text)
        out = str(tmp_path / "out")
        assert main([verb, str(chopped), out, *flags, "--data", "nowhere.txt"]) == 2
        assert said in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == left, "nothing is begun"
