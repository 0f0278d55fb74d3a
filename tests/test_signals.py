"""Every verb that works long, interrupted at random instants: it ends, says how to go on, leaves
nothing half-written and no process, and the same command works again.

CHOPJAX_SIGNALS=200 for more of them. An instant is so many seconds of CPU time after the handlers
are there: a busy machine changes when it comes, not where.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import checkpoints
import local_tasks
import pytest

from chopjax.checkpoint.safetensors_file import open_header

COUNT = int(os.environ.get("CHOPJAX_SIGNALS", "24"))
HANG_SECONDS = 300  # nothing takes so long, on any machine
# torch, where it is, would take a third of their time to import.
PROGRAM = [sys.executable, str(Path(__file__).with_name("without_torch.py"))]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")

TRAIN = """
from chopjax.train.settings import default_config

def get_config():
    config = default_config()
    config.model, config.data.train = {model!r}, {tokens!r}
    config.data.batch_size, config.data.sequence_length = 2, 16
    config.total_steps, config.checkpoints.every = 30, 7
    config.log.tensorboard = False
    return config
"""
SWEEP = """
from chopjax.sweep_settings import default_config

def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.strategies, config.remove, config.healed = "input,deepest", "1,2", True
    config.heal.total_steps = 2
    config.heal.data.batch_size, config.heal.data.sequence_length = 2, 16
    return config
"""
RUN = """
from chopjax.pipeline_settings import default_config

def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.chop.strategy, config.chop.remove = "input", "2"
    config.heal.total_steps, config.heal.checkpoints.every = 6, 2
    config.heal.data.batch_size, config.heal.data.sequence_length = 4, 32
    config.heal.log.tensorboard = False
    config.score.latency_length = 16
    return config
"""


class Verb(NamedTuple):
    """words: of the command, OUT being the folder to write. seconds: of CPU time, about, that it
    takes; where less is enough, some signals come too late."""

    words: str
    seconds: float


VERBS = {
    "prepare": Verb("prepare {text} --tokenizer {model} --output OUT --workers 2", 2),
    "train": Verb("train --config {train} --workdir OUT", 5),
    "score": Verb("score {model} --tasks tiny_choice --include-path {tasks} --output OUT", 3.8),
    "perplexity": Verb("perplexity {model} --data {text}", 3.3),
    "analyze": Verb(
        "analyze {model} --data {text} --output OUT --sequences 4 --sequence-length 16", 6
    ),
    "chop": Verb("chop {model} OUT --keep 0,3", 0.3),
    "import": Verb("import {model} OUT", 1.2),
    "export": Verb("export {imported} OUT", 1.2),
    "sweep": Verb("sweep --config {sweep} --workdir OUT", 10),
    "run": Verb("run --config {run} --workdir OUT", 9),
    "latency": Verb("latency {model} --length 16 --batch 1", 5),
    "plan": Verb("plan --config {train} --topology v5e:2x2 --config.data.batch_size=4", 3.3),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands are about, by the names in VERBS."""
    folder = tmp_path_factory.mktemp("signals")
    model = checkpoints.write_checkpoint(folder / "model", vocab_size=300)
    checkpoints.write_tokenizer(model, 300)
    text = folder / "text.jsonl"
    sentence = "the cat sat on the mat, and the dog sat on the cat. "
    lines = [json.dumps({"text": sentence * (3 + n % 5)}) for n in range(40)]
    text.write_text("\n".join(lines) + "\n")
    found = {"model": model, "text": text, "tasks": local_tasks.write_tasks(folder / "tasks")}
    found |= {"tokens": folder / "tokens", "imported": folder / "imported"}
    for name, recipe in (("train", TRAIN), ("sweep", SWEEP), ("run", RUN)):
        found[name] = folder / f"{name}.py"
        found[name].write_text(recipe.format(**{key: str(path) for key, path in found.items()}))
    names = {key: str(path) for key, path in found.items()}
    for verb, out in (("prepare", "tokens"), ("import", "imported")):
        subprocess.run([*PROGRAM, *words_of(verb, names, found[out])], check=True)
    return names


def words_of(verb: str, names: dict[str, str], out: Path) -> list[str]:
    return [str(out) if w == "OUT" else w.format(**names) for w in VERBS[verb].words.split()]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    # A command compiles by itself: that is an instant, too.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.Popen(
        [*PROGRAM, *words],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "err").open("w"),
        text=True,
        env=environment | {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")},
        start_new_session=True,  # a group of its own, which a terminal would send Ctrl-C to
    )


@pytest.mark.parametrize(
    "number",
    # At first prepare (by SIGTERM), train, score, analyze and import.
    [
        pytest.param(n, marks=() if n in (0, 1, 2, 4, 6) else pytest.mark.thorough)
        for n in range(COUNT)
    ],
)
def test_at_a_random_instant(number: int, material: dict[str, str], tmp_path: Path) -> None:
    draw = random.Random(number)
    verb = list(VERBS)[number % len(VERBS)]
    kind = draw.choice(["single", "double", "double", "SIGTERM"])
    instant = draw.uniform(0, VERBS[verb].seconds)
    out = tmp_path / "out"
    words = words_of(verb, material, out)
    process = start(words, tmp_path)
    try:
        wait_until(process, lambda: has_handlers(process.pid))
        wait_until(process, lambda: cpu_seconds(process.pid) >= instant)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGINT)
            if kind == "double":
                time.sleep(draw.uniform(0, 0.05))
                os.killpg(process.pid, signal.SIGINT)
        sent = time.monotonic()
        code = process.wait(HANG_SECONDS)
        took = time.monotonic() - sent
        wait_until(None, lambda: not in_session(process.pid))
    finally:
        for pid in in_session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    err = (tmp_path / "err").read_text()
    print(f"{number:3} {verb:10} {kind:7} at {instant:5.2f} s CPU: {code:3} after {took:.1f} s")
    assert "Traceback" not in err, err
    assert "leaked" not in err, err
    codes = {0, 143, 75} if kind == "SIGTERM" else {0, 130}
    assert code in codes, err
    if code:
        last = err.splitlines()[-1]
        assert last.startswith(f"chopjax {verb}: "), err
        assert "the same command" in last, err
        assert not list((tmp_path / "tmp").glob("chopjax-*")), "left in the folder for such files"
        assert_whole(tmp_path, killed_save=verb in ("train", "run", "sweep"))
    if code and draw.random() < 1 / VERBS[verb].seconds:
        taken = verb in ("chop", "import", "export", "analyze") and out.exists()  # it came too late
        again = start(words, tmp_path)
        assert again.wait(HANG_SECONDS) == (2 if taken else 0), (tmp_path / "err").read_text()
        assert_whole(tmp_path)


def assert_whole(folder: Path, killed_save: bool = False) -> None:
    """Nothing half-written under a final name, and nothing hidden beside one.

    killed_save: a checkpoint that was being saved may be there, under the name of one.
    """
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if parts[0] in ("tmp", "cache", "err"):
            continue
        if any(part.endswith(".partial") and part[:-8].isdigit() for part in parts):
            assert killed_save, path
            continue
        if "out.partial" in parts:  # unfinished work of prepare, which the next run goes on with
            continue
        if "tokens.partial" in parts or any(
            p in ("train.partial", "held_out.partial") for p in parts
        ):
            continue
        assert ".partial-" not in path.name, path
        assert ".old-" not in path.name, path
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            header = open_header(path)
            assert path.stat().st_size == max(t.start + t.nbytes for t in header.tensors.values())
        elif path.suffix == ".png":
            assert b"IEND" in path.read_bytes()[-12:], path
        elif path.suffix == ".npz":
            assert path.read_bytes()[-22:-18] == b"PK\x05\x06", path


# ------------------------------------------------------------------------- What /proc says


def wait_until(process: subprocess.Popen[str] | None, holds: Callable[[], bool]) -> None:
    """Until it holds or the process has ended."""
    deadline = time.monotonic() + HANG_SECONDS
    while not holds() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_handlers(pid: int) -> bool:
    """Python by itself takes Ctrl-C, but not SIGTERM."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def cpu_seconds(pid: int) -> float:
    """Of the process and its children."""
    ticks = 0
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (str(pid), *children):
            ticks += sum(map(int, stat_of(each)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def stat_of(pid: str) -> list[str]:
    """The fields of its line after the name, the state first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def in_session(leader: int) -> list[int]:
    """Living processes of a session."""
    return list(_in_session(leader))


def _in_session(leader: int) -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = stat_of(path.name)[:4]
                if int(session) == leader and state != "Z":
                    yield int(path.name)
