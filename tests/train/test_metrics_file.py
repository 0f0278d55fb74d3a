from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.train.metrics_file import METRICS, cut_after, read_metrics

ROWS = [{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 2}, {"step": 2, "loss": "nan"}]
WHOLE = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def test_numbers_that_json_lacks_come_back(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / METRICS).write_bytes(WHOLE)
    rows = read_metrics(tmp_path)
    assert rows[:2] == ROWS[:2]
    assert math.isnan(rows[2]["loss"])


@pytest.mark.parametrize("cut", range(1, len(json.dumps(ROWS[-1])) + 1))
def test_a_killed_writer_loses_its_last_line_at_most(tmp_path: Path, cut: int) -> None:
    path = tmp_path / METRICS
    path.write_bytes(WHOLE[:-cut])
    whole = 3 if cut == 1 else 2  # of the last one only the end of the line may be missing
    assert len(read_metrics(tmp_path)) == whole
    cut_after(path, 5)
    assert len(read_metrics(tmp_path)) == whole
    assert path.read_bytes().endswith(b"}\n")
    cut_after(path, 0)
    assert path.read_bytes() == b""


def test_zeros_of_a_power_failure_go(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(WHOLE + b"\0" * 100 + b"\n")
    assert len(read_metrics(tmp_path)) == 3


@pytest.mark.parametrize(
    "line",
    [b"\xff", b"[]", b"{}", b"", b"null", b'{"step": "1"}', b'{"step": true}', b'{"step": -1}',
     b'{"step": 1, "loss": []}', b'{"step": 1, "loss": "x"}', b'{"step": 1, "loss": null}',
     b'{"step": 1.5}', b"[" * 100_000, "é".encode("latin-1"), b'{"step": 1' + b"0" * 5000 + b"}"],
)  # fmt: skip
def test_what_no_run_writes_is_refused_by_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / METRICS
    path.write_bytes(WHOLE + line + b"\n" + WHOLE)
    if not line:
        assert len(read_metrics(tmp_path)) == 6
        return
    for use in (lambda: read_metrics(tmp_path), lambda: cut_after(path, 1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl: line 4 is not one"):
            use()
    assert path.read_bytes() == WHOLE + line + b"\n" + WHOLE


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    with pytest.raises(UserError, match="not a file"):
        read_metrics(tmp_path)


@given(st.binary(max_size=40), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, noise: bytes, at: int) -> None:
    workdir = tmp_path_factory.mktemp("run")
    (workdir / METRICS).write_bytes(WHOLE[:at] + noise + WHOLE[at:])
    try:
        rows = read_metrics(workdir)
    except UserError:
        return
    assert all(type(value) in (int, float) for row in rows for value in row.values())
