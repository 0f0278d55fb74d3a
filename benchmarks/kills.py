"""Does a training run that is killed again and again end with the bits of one that is not?

    python benchmarks/kills.py [--rounds 100] [--optimizer lion] [--adapters] [--seed 0] [--json]

A small Llama is trained for --steps steps, with a checkpoint every third step and two of six layers
chopped away a third of the way, once undisturbed. --adapters: with LoRA and dropout on a base in
four bits, taught by its parent, whose layers it shares. Then the same run is started over and over
and killed with SIGKILL: in every other round as soon as a save is going on (plus up to 20 ms), else
at a random instant between the start and a while after it. After every kill, each folder that bears
a step's number must verify against its checksums. A run that comes to its end is compared with the
undisturbed one, bit by bit, all that it trains and its optimizer state, and the next run begins.

The runs are forks of one process that has imported everything: a kill is a kill, and a round takes
seconds. `ours` is the share of runs that ended with the same bits; nothing but 1 will do.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import transformers
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.manifest import verify_files
from chopjax.data.prepare import prepare
from chopjax.train import checkpoints
from chopjax.train.loop import CHECKPOINTS, train
from chopjax.train.settings import default_config

WORDS = 60
SHAPE = {
    "model_type": "llama",
    "vocab_size": WORDS + 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
BITS = "bits.json"


def prepare_data(folder: Path) -> None:
    """FOLDER/tokenizer and FOLDER/tokens."""
    words = {f"w{number}": number + 1 for number in range(WORDS)} | {"<s>": 0}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(settings))
    chance = random.Random(0)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(200):
            first, by = chance.randrange(WORDS), chance.randrange(1, 5)
            text = " ".join(f"w{(first + by * n) % WORDS}" for n in range(40))
            file.write(json.dumps({"text": text}) + "\n")
    prepare([folder / "text.jsonl"], folder / "tokenizer", folder / "tokens", workers=1)


def recipe(folder: Path, steps: int, optimizer: str) -> ConfigDict:
    config = default_config()
    config.scratch = SHAPE
    config.tokenizer = str(folder / "tokenizer")
    config.total_steps = steps
    config.chop.keep = "0,1,3,5"
    config.chop.after_steps = steps // 3
    config.data.train = str(folder / "tokens")
    config.data.batch_size, config.data.sequence_length = 4, 16
    config.optimizer.name = optimizer
    config.optimizer.peak_learning_rate = 1e-3
    config.checkpoints.every = 3
    config.log.tensorboard = False
    return config


def make_parent(first: ConfigDict, folder: Path) -> None:
    """FOLDER/model, random but for two steps. Changes the config."""
    first.total_steps, first.chop.keep, first.chop.after_steps = 2, "", 0
    train(first, folder / "parent")
    export_model(str(folder / "parent"), folder / "model")


def adapted(config: ConfigDict, folder: Path) -> ConfigDict:
    """The same run of adapters, on FOLDER/model."""
    config.scratch, config.tokenizer, config.model = {}, "", str(folder / "model")
    config.adapter.rank, config.adapter.dropout, config.adapter.base = 2, 0.1, "nf4"
    config.teacher.model, config.teacher.logits = "parent", 0.5
    return config


def start(config: ConfigDict, workdir: Path) -> int:
    """A process that runs to the end and leaves BITS; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        summary = train(config, workdir)
        (workdir / BITS).write_text(json.dumps(bits(Path(summary["checkpoint"]))))
        code = 0
    finally:
        os._exit(code)


def bits(checkpoint: Path) -> dict[str, str]:
    """Every array of the state by a digest of its bytes."""
    tree = ocp.load(checkpoint.absolute(), checkpointable_name=checkpoints.PYTREE)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in leaves
    }


def wait(child: int, until: float, workdir: Path, for_save: bool) -> bool:
    """Until a time, or until a save is going on; False if the process has ended by then."""
    saves_before = checkpoints.steps(workdir / CHECKPOINTS)
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        going_on = any((workdir / CHECKPOINTS).glob(".saving-*"))
        if for_save and going_on and checkpoints.steps(workdir / CHECKPOINTS) != saves_before:
            return True
        time.sleep(0.002)
    return True


def finish(child: int, workdir: Path) -> dict[str, str]:
    """The bits of a process that is left alone."""
    status = os.waitpid(child, 0)[1]
    if status:
        sys.exit(f"a run failed:\n{workdir.with_suffix('.log').read_text()[-3000:]}")
    return json.loads((workdir / BITS).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="kills")
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--optimizer", choices=("lion", "adamw"), default="lion")
    parser.add_argument("--adapters", action="store_true", help="QLoRA, with a teacher")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chopjax-kills-"))
    try:
        result = measure(folder, args)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result) if args.json else result)
    sys.exit(0 if result["ratio"] == 1 else 1)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    prepare_data(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config = recipe(folder, args.steps, args.optimizer)
    if args.adapters:
        # In a process of its own: forks of one that has computed hang in jax's threads.
        child = os.fork()
        if not child:
            try:
                make_parent(config, folder)
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            sys.exit("the model under the adapters could not be made; see above")
        config = adapted(config, folder)
    transformers.LlamaConfig  # noqa: B018 (every fork would import it, and torch with it)
    gc.collect()
    gc.freeze()  # or every fork's collections would copy what it shares with this process
    for name in ("warm", "whole"):  # the second one tells how long a run takes
        begun = time.monotonic()
        expected = finish(start(config, folder / name), folder / name)
        seconds = time.monotonic() - begun
    print(f"undisturbed: {args.steps} steps in {seconds:.1f} s", file=sys.stderr)
    chance = random.Random(args.seed)
    kills, runs, same, saves_cut = 0, 0, 0, 0
    workdir = folder / "run-0"
    while True:
        child = start(config, workdir)
        if kills == args.rounds:
            expect_same = finish(child, workdir) == expected
            runs, same = runs + 1, same + expect_same
            break
        for_save = kills % 2 == 0
        limit = time.monotonic() + (seconds if for_save else chance.uniform(0, seconds))
        if wait(child, limit, workdir, for_save):
            time.sleep(chance.uniform(0, 0.02) if for_save else 0)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            saves_cut += any((workdir / CHECKPOINTS).glob(".saving-*"))
            for step in checkpoints.steps(workdir / CHECKPOINTS):
                problems = verify_files(workdir / CHECKPOINTS / str(step))
                if problems:
                    sys.exit(f"kill {kills}: step {step} is damaged: {problems}")
        if (workdir / BITS).exists():  # it came to its end
            runs, same = runs + 1, same + (json.loads((workdir / BITS).read_text()) == expected)
            workdir = folder / f"run-{runs}"
    print(f"{kills} kills, {saves_cut} of them in a save; {runs} runs", file=sys.stderr)
    return {
        "ours": same / runs,
        "peer": 1.0,
        "ratio": same / runs,
        "unit": "share of killed runs that end with the bits of an undisturbed one",
        "kills": kills,
        "kills_in_a_save": saves_cut,
        "runs": runs,
        "settings": {
            "steps": args.steps,
            "optimizer": args.optimizer,
            "adapters": args.adapters,
            "seed": args.seed,
        },
    }


if __name__ == "__main__":
    main()
