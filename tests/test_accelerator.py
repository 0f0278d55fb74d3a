"""benchmarks/accelerator.py with little shapes, and what its processes do when they fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORKER = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from workers import serve

def answer(request):
    if request == "fail":
        raise ValueError("no room\\nat all")
    if request == "die":
        os.kill(os.getpid(), 9)
    if request == "sleep":
        time.sleep(60)
    return {{"got": request}}

serve(lambda: answer)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from workers import Worker

    script = tmp_path / "script.py"
    script.write_text(WORKER.format(benchmarks=str(BENCHMARKS)))
    made = Worker(str(script), "one", "", tmp_path / "log")
    yield made
    made.kill()


def test_a_failure_is_an_answer(worker):
    with pytest.raises(SystemExit, match=r"^one: ValueError: no room$"):
        worker.ask("fail")
    assert worker.ask({"steps": 3}) == {"got": {"steps": 3}}
    assert not worker.ended()


def test_a_killed_worker_is_named(worker):
    worker.ask(1)
    with pytest.raises(SystemExit, match=r"^one: was killed by SIGKILL$"):
        worker.ask("die")
    assert worker.ended()


def test_a_worker_that_takes_too_long_is_killed(worker):
    worker.ask(1)
    with pytest.raises(SystemExit, match=r"^one: no answer within 0 s$"):
        worker.ask("sleep", 0.1)
    assert worker.ended()


@pytest.mark.thorough
def test_every_part(tmp_path, monkeypatch):
    """Of two tasks one is damaged: its row says so, and everything else is there."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from synthetic_tasks import write_documents, write_tokenizer

    write_tokenizer(tmp_path / "words", 256)
    write_documents(tmp_path / "data", 4, 100)
    shutil.rmtree(tmp_path / "data" / "mmlu")
    options = ["--tiny", "--minutes", "60", "--out", str(tmp_path / "out")]
    options += ["--data", str(tmp_path / "data"), "--tokenizer", str(tmp_path / "words")]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "accelerator.json").read_text())
    parts = {name: part["rows"] for name, part in found["parts"].items()}
    assert list(parts) == ["train", "score", "adapters", "latency", "parity"]
    damaged = parts["score"].pop()
    assert "FileNotFoundError" in damaged["error"]
    assert not [row for rows in parts.values() for row in rows if "error" in row], parts
    contestants = [(row["side"], row["kind"], row["attention"]) for row in parts["train"]]
    assert sorted(set(contestants)) == [
        ("ours", "full", "blocked"),
        ("ours", "full", "xla"),
        ("torch", "full", "eager"),
    ]
    for row in parts["train"] + parts["adapters"]:
        assert row["agrees"], row
        assert row["tokens_per_second"] > 0
    assert all("ratio" in row for row in parts["train"] if row["side"] == "ours")
    scored = parts["score"][0]
    assert scored["documents"] == 4
    assert scored["agreement"]["nats"]["median"] < 1  # of some two hundred, in bfloat16
    assert {"prefill", "decode"} == set(parts["latency"][0]["1 layers"])
    assert all(row["holds"] for row in parts["parity"])
    table = (tmp_path / "out" / "accelerator.md").read_text()
    assert "no figure here means anything" in table
    assert "FileNotFoundError" in table


def test_a_processor_alone_is_refused(tmp_path):
    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "jax sees no accelerator" in done.stderr
    assert not (tmp_path / "out").exists()


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), *options]
    return subprocess.run(command, capture_output=True, text=True)
