"""Does chopjax lose, move or change a file that it did not make?

    python benchmarks/foreign_files.py [--cases 500] [--seed 0] [--verbs chop,run] [--json]

A case is a folder with files, folders, links and empty folders of somebody else's, strewn around
and in the place that a verb writes to, many of them under chopjax's own names: config.json,
huggingface/, checkpoints/7/, stages/heal.json, tok.partial, .out.partial-1234abcd. The place is
empty, theirs alone, or what the same verb, or another, made before. Then the verb runs, one to
three times, with and without --overwrite; some runs are killed with SIGKILL at a random instant.
After every run each foreign entry must be where it was, with the bytes and the time that it had; no
run may end in a traceback. Where nothing was strewn, the last run, which is not killed, must
succeed.

The runs are forks of one process that has imported everything. `ours` is the share of cases in
which all of this holds; nothing but 1 will do.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kills import SHAPE, prepare_data

os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

# What somebody else may have called a file, and chopjax calls its own; {} is the output's name.
NAMES = """
config.json model.safetensors README.md notes.txt chopjax_folder.json chopjax.json report.json
report.html healing.png healing.svg loss.png points.jsonl metrics.jsonl prepare.json store.json
.lock .hashes.json analysis.json huggingface/hub/blob huggingface huggingface/config.json params/x
checkpoints/notes.txt checkpoints/7/x checkpoints/1/x checkpoints/7.partial/x
checkpoints/2/notes.txt checkpoints/7.damaged/x checkpoints/.saving-1234abcd/7/x tensorboard/x
.assets.partial/x .assets.partial-1234abcd/huggingface/x .metrics.jsonl.partial tokens/train/x
tokens/held_out/x tokens/x tokens.partial/x tokens/train.partial/x tokens/train/notes.txt
chopped/x chopped/config.json chopped/notes.txt heal/x heal/notes.txt heal/huggingface/x
heal/checkpoints/2/notes.txt healed/x healed/README.md healed/notes.txt scores/parent/x
scores/notes.txt rounds/1/chopped/x stages stages/heal.json stages/chop.json stages/x
stages/copies/heal.json stages/copies/x analysis/x analysis/analysis.json analysis-0/analysis.json
analysis-0/x records/00000.json store/train/x lock replaced/x tokens-00000.bin
samples/journal-0123456789ab.txt
""".split()
BESIDE = """
{}.partial/x {}.partial/prepare.json .{}.partial-1234abcd/x .{}.partial-1234abcd
.{}.old-1234abcd/x .{}.partial-1234abcd/.chopjax.json {}.old/x .{}.json.partial-1234abcd {}.png
{}.svg {}.jsonl notes.txt
""".split()
# Bytes that our own file would have had: these are damage, which has tests of its own.
DAMAGE = ("checkpoints/2/",)
# What verbs import when they begin.
MODULES = """
runs.pipeline runs.sweep chop.analysis commands.latency commands.score data.prepare
report.task_rendering latency.models score.texts chop.stream checkpoint.export
""".split()


class Verb(NamedTuple):
    """words: the command, of material and output. more: settings that make it something else."""

    words: Callable[[Path, Path], list[str]]
    overwrites: bool  # has --overwrite
    weight: int  # how often it is tried: those that compile little more often
    more: tuple[str, ...] = ()
    output: str = "out"


def recipe_words(verb: str) -> Callable[[Path, Path], list[str]]:
    return lambda m, out: [verb, "--config", str(m / f"{verb}.py"), "--workdir", str(out)]


VERBS = {
    "chop": Verb(
        lambda m, out: ["chop", str(m / "parent"), str(out), "--keep", "0-2"], True, 8
    ),
    "export": Verb(lambda m, out: ["export", str(m / "imported"), str(out)], True, 5),
    "import": Verb(lambda m, out: ["import", str(m / "parent"), str(out)], True, 5),
    "prepare": Verb(
        lambda m, out: [
            "prepare", str(m / "text.jsonl"), "--tokenizer", str(m / "parent"), "--workers", "1",
            "--output", str(out),
        ],
        True, 5, ("--before", "none"),
    ),
    "analyze": Verb(
        lambda m, out: [
            "analyze", str(m / "parent"), "--data", str(m / "text.jsonl"), "--output", str(out),
            "--sequences", "4", "--sequence-length", "16", "--measures", "similarity",
        ],
        True, 3,
    ),
    "train": Verb(recipe_words("train"), False, 5, ("--config.total_steps=5",)),
    "score": Verb(
        lambda m, out: [
            "score", str(m / "parent"), "--tasks", "pick", "--include-path", str(m), "--output",
            str(out),
        ],
        False, 2,
    ),
    "compare": Verb(
        lambda m, out: ["compare", str(m / "a.json"), str(m / "b.json"), "--plot", str(out)],
        False, 4, (), "plot.png",
    ),
    "latency": Verb(
        lambda m, out: [
            "latency", str(m / "parent"), "--remove", "1", "--rounds", "1", "--length", "8",
            "--plot", str(out),
        ],
        False, 1, (), "plot",
    ),
    "sweep": Verb(recipe_words("sweep"), False, 3, ("--config.remove=2",)),
    "run": Verb(recipe_words("run"), False, 4, ("--config.heal.total_steps=3",)),
}  # fmt: skip

RECIPES = {
    "train": """
from chopjax.train.settings import default_config
def get_config():
    config = default_config()
    config.model, config.data.train = {parent!r}, {tokens!r}
    config.total_steps, config.checkpoints.every = 4, 2
    config.data.batch_size, config.data.sequence_length = 2, 16
    return config
""",
    "run": """
from chopjax.pipeline_settings import default_config
def get_config():
    config = default_config()
    config.model, config.text.train, config.text.held_out = {parent!r}, {text!r}, {held_out!r}
    config.text.workers, config.chop.strategy, config.chop.remove = 1, "input", "3"
    config.heal.total_steps, config.heal.checkpoints.every = 4, 2
    config.heal.data.batch_size, config.heal.data.sequence_length = 2, 16
    config.heal.log.tensorboard, config.score.latency_length = False, 8
    return config
""",
    "sweep": """
from chopjax.sweep_settings import default_config
def get_config():
    config = default_config()
    config.model, config.text.train, config.text.held_out = {parent!r}, {text!r}, {held_out!r}
    config.text.workers, config.strategies, config.remove = 1, "input,magnitude", "3"
    config.calibration.sequences, config.calibration.sequence_length = 4, 16
    config.healed, config.heal.total_steps, config.heal.checkpoints.every = True, 2, 1
    config.heal.data.batch_size, config.heal.data.sequence_length = 2, 16
    return config
""",
}
TASK = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


# ---------------------------------------------------------------------------------- Running


def run(words: list[str], log: Path, kill_after: float | None = None) -> int:
    """A verb in a fork of this process; its exit code, -9 where it was killed before its end."""
    child = os.fork()
    if not child:
        code = 70
        try:
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            from chopjax import cli

            code = cli.main(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + (600 if kill_after is None else kill_after)
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def must(words: list[str], log: Path) -> float:
    """Run a verb that has to succeed; seconds."""
    begun = time.monotonic()
    if run(words, log):
        sys.exit(f"{' '.join(words)} failed:\n{log.read_text()[-3000:]}")
    return time.monotonic() - begun


def make_material(folder: Path) -> None:
    """A parent, texts, a store, an import and the recipes; results of a model, twice."""
    prepare_data(folder)
    lines = (folder / "text.jsonl").read_text().splitlines(keepends=True)
    (folder / "text.jsonl").write_text("".join(lines[:40]))
    (folder / "held_out.jsonl").write_text("".join(lines[40:44]))
    scratch = f"""
from chopjax.train.settings import default_config
def get_config():
    config = default_config()
    config.scratch, config.tokenizer = {SHAPE!r}, {str(folder / "tokenizer")!r}
    config.data.train, config.total_steps = {str(folder / "tokens")!r}, 1
    config.data.batch_size, config.data.sequence_length = 2, 16
    return config
"""
    (folder / "scratch.py").write_text(scratch)
    log = folder / "log"
    workdir = str(folder / "scratch")
    must(["train", "--config", str(folder / "scratch.py"), "--workdir", workdir], log)
    must(["export", workdir, str(folder / "parent")], log)
    must(["import", str(folder / "parent"), str(folder / "imported")], log)
    places = {name: str(folder / name) for name in ("parent", "tokens")}
    texts = {"text": str(folder / "text.jsonl"), "held_out": str(folder / "held_out.jsonl")}
    for name, recipe in RECIPES.items():
        (folder / f"{name}.py").write_text(recipe.format(**places, **texts))
    rows = [{"context": "w1 w2", "endings": ["w3", "w9"], "label": n % 2} for n in range(4)]
    (folder / "pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pick.yaml").write_text(TASK.format(data=folder / "pick.jsonl"))
    figures = {"acc,none": 0.5, "acc_stderr,none": 0.1}
    results = {
        "results": {"pick": {"alias": "pick"} | figures},
        "config": {"model": "chopjax", "model_args": {"pretrained": "a"}},
        "n-samples": {"pick": {"original": 4, "effective": 4}},
        "n-shot": {"pick": 0},
        "versions": {"pick": 1.0},
        "configs": {"pick": {"metadata": {"version": 1.0}}},
        "higher_is_better": {"pick": {"acc": True}},
    }
    for name in ("a.json", "b.json"):
        (folder / name).write_text(json.dumps(results))


# ----------------------------------------------------------------------------------- A case


def strew(chance: random.Random, case: Path, out: Path) -> set[Path]:
    """Entries of somebody else's; returns their paths."""
    found: set[Path] = set()
    for _ in range(chance.choice((0, 1, 1, 2, 3, 6))):
        inside = chance.random() < 0.7
        name = chance.choice(NAMES) if inside else chance.choice(BESIDE).format(out.name)
        if any(name.startswith(prefix) and not name.endswith("notes.txt") for prefix in DAMAGE):
            continue
        path = (out if inside else case) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # a part of it is a file
        if path.is_dir() and not path.is_symlink():
            continue
        path.unlink(missing_ok=True)
        kind = chance.choice(("text", "text", "bytes", "json", "folder", "link", "lost link"))
        if kind == "folder":
            path.mkdir()
        elif "link" in kind:
            path.symlink_to(case.parent / "elsewhere" if kind == "link" else "nowhere")
        elif kind == "json":
            path.write_text(json.dumps({"mine": chance.random()}))
        else:
            path.write_bytes(b"precious\n" if kind == "text" else chance.randbytes(50))
        found.add(path)
    return found


def look(paths: set[Path]) -> dict[str, Any]:
    """Everything that tells whether an entry is as it was."""
    seen: dict[str, Any] = {}
    for path in sorted(paths):
        if path.is_symlink():
            seen[str(path)] = os.readlink(path)
        elif path.is_file():
            seen[str(path)] = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        else:
            seen[str(path)] = path.is_dir()
    return seen


class Setup(NamedTuple):
    material: Path
    finished: dict[str, Path]  # what each verb makes
    seconds: dict[str, float]


def one(chance: random.Random, case: Path, setup: Setup) -> list[str]:
    """What went wrong in a case."""
    tried = sorted(setup.finished)
    name = chance.choices(tried, [VERBS[each].weight for each in tried])[0]
    verb = VERBS[name]
    out = case / verb.output
    before = chance.choice(("nothing", "nothing", "its own", "its own", "another's", "theirs"))
    if before == "its own" or before == "another's":
        maker = name if before == "its own" else chance.choice(sorted(setup.finished))
        source = setup.finished[maker]
        for path in source.parent.glob(source.stem + "*"):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, case / path.name.replace(source.stem, out.stem, 1))
    elif before == "theirs":
        out.mkdir()
    ours = {path for path in case.rglob("*") if path.is_file()}
    strewn = strew(chance, case, out)
    if before == "another's":
        strewn |= {p for p in ours if not (p.is_symlink() or p in strewn) and maker != name}
    expected = look(strewn)
    problems, log = [], case.parent / "log"
    told, changes = [], chance.random() < 0.5
    for turn in range(turns := chance.choice((1, 2, 3))):
        words = verb.words(setup.material, out)
        if verb.overwrites and chance.random() < 0.7:
            words.append("--overwrite")
        if verb.more and changes and chance.random() < 0.4:
            words += verb.more
        last = turn == turns - 1
        kill_after = None if last else chance.uniform(0, setup.seconds[name] * 1.2)
        code = run(words, log, kill_after)
        said = log.read_text(errors="replace")
        told.append(f"{' '.join(words)} -> {code}: {said.strip().splitlines()[-1:]}")
        now = look(strewn)
        problems += [f"lost or changed: {p}" for p in expected if now[p] != expected[p]]
        if code not in (0, 2, -signal.SIGKILL) or "Traceback" in said:
            problems.append(f"exit {code}:\n{said[-2000:]}")
        clean = not strewn and before in ("nothing", "its own") and not changes
        if last and clean and code and ("--overwrite" in words or not verb.overwrites):
            problems.append(f"cannot go on: {said[-600:]}")
        if problems:
            break
    return [f"{name}, {before}", *told, *problems] if problems else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default=",".join(VERBS), help="those that are tried")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chopjax-foreign-"))
    try:
        bad = measure(folder, args)
    finally:
        shutil.rmtree(folder)
    result = {
        "ours": 1 - bad / args.cases,
        "peer": 1.0,
        "ratio": 1 - bad / args.cases,
        "unit": "share of cases in which no foreign file was lost, moved or changed",
        "cases": args.cases,
    }
    print(json.dumps(result) if args.json else result)
    sys.exit(0 if not bad else 1)


def measure(folder: Path, args: argparse.Namespace) -> int:
    """How many cases went wrong; each is told on standard error."""
    for module in MODULES:
        importlib.import_module(f"chopjax.{module}")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    gc.collect()
    gc.freeze()  # or every fork's collections would copy what it shares with this process
    material = folder / "material"
    material.mkdir()
    make_material(material)
    finished: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for name in sorted(args.verbs.split(",")):
        finished[name] = folder / "finished" / name / VERBS[name].output
        finished[name].parent.mkdir(parents=True)
        words = VERBS[name].words(material, finished[name])
        seconds[name] = must(words, folder / "log")
    before = look({path for path in material.rglob("*") if path.is_file()})
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "mine").write_text("precious")
    setup, bad = Setup(material, finished, seconds), 0
    for number in range(args.cases):
        case = folder / f"case-{number}"
        case.mkdir()
        problems = one(random.Random(args.seed * 1_000_003 + number), case, setup)
        if (folder / "elsewhere" / "mine").read_text() != "precious":
            problems.append("what a link leads to was changed")
        if problems:
            bad += 1
            print(f"case {number}: " + "\n  ".join(problems), file=sys.stderr, flush=True)
        shutil.rmtree(case)
    after = look({path for path in material.rglob("*") if path.is_file()})
    if changed := [name for name in before if after.get(name) != before[name]]:
        bad += 1
        print(f"the inputs were changed: {changed}", file=sys.stderr)
    return bad


if __name__ == "__main__":
    main()
