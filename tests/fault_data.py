"""Targets of tests/faults.py: token stores, training runs, results files, analyses."""

from __future__ import annotations

import atexit
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import write_checkpoint, write_tokenizer
from data.stores import write_store
from faults import FILE_FAULTS, JSON_FAULTS, Command, Target, succeed

VOCAB = 97
DATE = "2026-01-01T00-00-00.000000"

# The workdir is a copy beside the case's folder: a run may change what it goes on with.
RECIPE = """
import shutil
from chopjax.train.settings import default_config

def get_config():
    {copy}
    config = default_config()
    config.model = {model!r}
    config.data.train = {store!r}
    config.data.batch_size = 2
    config.data.sequence_length = 8
    config.total_steps = {steps}
    config.checkpoints.every = 1
    config.log.tensorboard = False
    return config
"""


def _temporary(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _recipe(steps: int, store: Path, copy: tuple[Path, Path] | None = None) -> str:
    copied = f"shutil.copytree({str(copy[0])!r}, {str(copy[1])!r})" if copy else "pass"
    model = str(_model())
    return RECIPE.format(copy=copied, model=model, store=str(store), steps=steps)


def _work_of(thing: Path) -> Path:
    """{folder}-work, which goes when this process ends at the latest."""
    work = thing.parent.with_name(thing.parent.name + "-work")
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    return work


@functools.cache
def _model() -> Path:
    folder = _temporary("model")
    write_checkpoint(folder, hidden_size=16, intermediate_size=24, head_dim=8)
    write_tokenizer(folder)
    return folder


def _write_store(folder: Path, rng: random.Random) -> None:
    from chopjax.data.tokenizer import load_tokenizer

    shards = [
        [[0, *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 60)))] for _ in range(count)]
        for count in (3, rng.randint(0, 2), 2)
    ]
    write_store(folder, shards)
    path = folder / "store.json"
    record = json.loads(path.read_text())
    record |= {"tokenizer_fingerprint": load_tokenizer(_model()).fingerprint, "vocab_size": VOCAB}
    path.write_text(json.dumps(record, indent=1))


def make_store(thing: Path, rng: random.Random) -> None:
    _write_store(thing, rng)
    _work_of(thing)
    (thing.parent / "recipe.py").write_text(_recipe(1, thing))


@functools.cache
def _run() -> Path:
    """A training run of two steps, made once by a fork."""
    root = _temporary("run")
    _write_store(root / "store", random.Random(0))
    (root / "recipe.py").write_text(_recipe(2, root / "store"))
    succeed("train", "--config", root / "recipe.py", "--workdir", root / "run")
    return root


def make_run(thing: Path, rng: random.Random) -> None:
    root = _run()
    shutil.copytree(root / "run", thing, dirs_exist_ok=True)
    recipe = _recipe(3, root / "store", copy=(thing, _work_of(thing)))
    (thing.parent / "recipe.py").write_text(recipe)


def _write_results(folder: Path, rng: random.Random) -> None:
    results: dict[str, Any] = {"both": {"alias": "both", "acc,none": 0, "acc_stderr,none": "N/A"}}
    for task in ("a", "b"):
        right = [rng.random() < 0.5 for _ in range(6)]
        mean = float(np.mean(right))
        results[task] = {"alias": task, "acc,none": mean, "acc_stderr,none": 0.1, "sample_len": 6}
        rows = [
            {"doc_id": n, "filter": "none", "acc": float(value), "doc_hash": f"{n}",
             "prompt_hash": "p", "target_hash": "t"}
            for n, value in enumerate(right)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_{DATE}.jsonl").write_text(lines)
    results["both"]["acc,none"] = float(np.mean([results[t]["acc,none"] for t in "ab"]))
    content = {
        "results": results,
        "group_subtasks": {"both": ["a", "b"], "a": [], "b": []},
        "higher_is_better": {"both": {"acc": True}, "a": {"acc": True}, "b": {"acc": None}},
        "n-samples": {task: {"original": 6, "effective": 6} for task in "ab"},
        "chance": {"a": 0.5, "b": None},
        "config": {"model_args": {"pretrained": "m"}},
        "model_name": "m",
    }
    (folder / f"results_{DATE}.json").write_text(json.dumps(content, indent=1))


def make_results(thing: Path, rng: random.Random) -> None:
    good = thing.parent / "good"
    good.mkdir()
    for folder in (good, thing):
        _write_results(folder, rng)


def make_analysis(thing: Path, rng: random.Random) -> None:
    from chopjax.checkpoint.identity import fingerprint
    from chopjax.checkpoint.open import open_checkpoint
    from chopjax.models import parameters

    shutil.copytree(_model(), thing.parent / "model")
    found = open_checkpoint(str(_model()))
    L = found.config.num_layers
    numbers = [rng.random() for _ in range(L)]
    table = [[rng.random() if a + b <= L else None for b in range(1, L + 1)] for a in range(L)]
    rounds = [{"layer": layer, "loss": 1.0, "candidates": {}} for layer in range(1, L - 1)]
    analysis = {
        "format": 1,
        "model": "model",
        "num_layers": L,
        "num_parameters": parameters.count(found.config),
        "fingerprint": fingerprint(found.raw_config, found.tensors),
        "settings": {"protect": {"first": 1, "last": 1}},
        "measures": {"distance": table, "influence": numbers, "sleb": rounds},
    }
    (thing / "analysis.json").write_text(json.dumps(analysis, indent=1))


def _import_all() -> None:
    """What the commands import, without starting jax's backend."""
    from chopjax.chop import stream  # noqa: F401
    from chopjax.commands import compare, prepare  # noqa: F401
    from chopjax.report import task_rendering, task_table  # noqa: F401
    from chopjax.train import loop  # noqa: F401

    _model()


def _prepare_runs() -> None:
    _import_all()
    _run()


# Stores, results and analyses are the user's own, who may have them elsewhere by links.
FAULTS = {n: f for n, f in {**FILE_FAULTS, **JSON_FAULTS}.items() if "outside" not in n}
TRAIN = ("train", "--config", "{folder}/recipe.py", "--workdir", "{folder}-work", "--json")
CHOP = ("chop", "{folder}/model", "{out}", "--remove", "1", "--analysis", "{thing}", "--json")

TARGETS: dict[str, Target] = {
    "stores": Target(
        make_store,
        FAULTS,
        [Command(("prepare", "--verify", "{thing}", "--json")), Command(TRAIN, 0.03)],
        _import_all,
    ),
    "runs": Target(
        make_run,
        {**FILE_FAULTS, **JSON_FAULTS},
        [
            Command(("inspect", "{thing}", "--json")),
            Command(("export", "{thing}", "{out}"), 0.3),
            Command(TRAIN, 0.1),
        ],
        _prepare_runs,
    ),
    "results": Target(
        make_results,
        FAULTS,
        [
            Command(("compare", "{folder}/good", "{thing}", "--json")),
            Command(("compare", "{thing}", "--markdown"), 0.3),
        ],
        _import_all,
    ),
    "analyses": Target(
        make_analysis,
        FAULTS,
        [
            Command((*CHOP, "--strategy", "similarity")),
            Command((*CHOP, "--strategy", "sleb"), 0.3),
            Command((*CHOP, "--strategy", "average"), 0.3),
        ],
        _import_all,
    ),
}
