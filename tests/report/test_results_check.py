"""`chopjax compare` on files that nobody wrote on purpose."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from chopjax import cli

DATE = "2026-01-01T00-00-00.000000"
# As lm_eval 0.4 writes it: a group, a task that is the only one of its group, standard errors that
# are not there.
CONTENT: dict[str, Any] = {
    "results": {
        "both": {"alias": "both", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 4},
        "a": {"alias": " - a", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 2},
        "b": {"alias": " - b", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 2},
        "alone": {"alias": "alone", "perplexity,none": 3, "perplexity_stderr,none": None},
    },
    "group_subtasks": {"both": ["a", "b"], "a": [], "b": [], "alone": ["alone"]},
    "higher_is_better": {"both": {"acc": True}, "a": {"acc": None}, "alone": None},
    "n-samples": {"a": {"original": 2, "effective": 2}},
    "chance": {"a": 0.25, "b": None},
    "config": {"model_args": {"pretrained": "m"}},
    "model_name": "m",
}
ODD: list[Any] = [None, True, -1, 10**400, 1e308, float("nan"), float("inf"), "", "x", [], [1], {},
                  {"a": []}]  # fmt: skip


def write(folder: Path, content: Any = CONTENT, sample: Any = None) -> str:
    folder.mkdir()
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / f"results_{DATE}.json").write_bytes(text)
    for task in ("a", "b"):
        rows = [
            {"doc_id": n, "filter": "none", "acc": n, "doc_hash": "d", "prompt_hash": "p",
             "target_hash": "t"} | (sample or {})
            for n in (0, 1)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_{DATE}.jsonl").write_text(lines)
    return str(folder)


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["compare", *arguments])
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    return code, said.out + said.err


def places(value: Any, found: list[Any]) -> list[Any]:
    for key in value if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def test_a_whole_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = run(capfd, write(tmp_path / "x"), write(tmp_path / "y"))
    assert code == 0
    assert "both" in said
    assert "alone" in said


@pytest.mark.parametrize("seed", range(12))
def test_any_field_of_another_type(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seed: int
) -> None:
    """0, or 2 with the file and the field."""
    rng = random.Random(seed)
    good = write(tmp_path / "good")
    number = len(places(json.loads(json.dumps(CONTENT)), []))
    for case in range(number):
        broken = json.loads(json.dumps(CONTENT))
        container, key = places(broken, [])[case]
        container[key] = rng.choice(ODD)
        bad = write(tmp_path / f"{case}", broken)
        order = [good, bad] if rng.random() < 0.5 else [bad, good]
        code, said = run(capfd, *order, rng.choice(["--json", "--markdown"]))
        assert code in (0, 2), (key, container[key], said)
        assert code == 0 or f"{tmp_path}/{case}" in said or "no task with" in said


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("field", ["doc_id", "filter", "acc", "doc_hash"])
def test_samples_of_another_type(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], field: str, value: Any
) -> None:
    bad = write(tmp_path / "bad", sample={field: value})
    code, said = run(capfd, write(tmp_path / "good"), bad)
    assert code == 0 or (code == 2 and "bad" in said), said


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[" * 100_000, b"null", b"{}", b'{"results": 1}', b'{"results": {"a": 1}}',
     '{"results": {}}'.encode("utf-16")],
)  # fmt: skip
def test_no_results_at_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    code, said = run(capfd, write(tmp_path / "bad", content))
    assert code == 2
    assert f"results_{DATE}.json" in said


def test_a_group_within_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    groups = {"both": ["a", "c"], "c": ["b", "both"]}
    code, said = run(capfd, write(tmp_path / "bad", CONTENT | {"group_subtasks": groups}))
    assert code == 2
    assert "is a part of itself" in said


def test_samples_that_are_a_folder_or_not_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good")
    for number, content in enumerate((None, b"\xff\n", b"[" * 100_000)):
        bad = Path(write(tmp_path / f"{number}"))
        path = bad / f"samples_a_{DATE}.jsonl"
        path.unlink()
        path.write_bytes(content) if content else path.mkdir()
        code, said = run(capfd, good, str(bad))
        assert code == 2
        assert path.name in said
