"""A process that trains adapters on a model of the hub, whose branch then moves. Run by
test_bases.py, which moves it where this waits for a line.

    python hub_base.py DATA_FOLDER WORKDIR MODEL
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import without_torch  # noqa: F401 - its import takes seconds
from huggingface_hub import constants
from train.runs import recipe

from chopjax.checkpoint.export import export_model
from chopjax.train.loop import train


def main(data: Path, workdir: Path, model: str) -> None:
    config = recipe(data, "adapter.rank=2", "total_steps=2", "chop.keep=0,2-3")
    config.model = model
    train(config, workdir)
    print("trained", flush=True)
    input()
    config.total_steps = 3
    train(config, workdir, force=True)
    export_model(str(workdir), workdir / "online")
    constants.HF_HUB_OFFLINE = True
    export_model(str(workdir), workdir / "offline")
    constants.HF_HUB_OFFLINE = False
    for mirrors in (Path(os.environ["HF_HOME"]) / "chopjax").glob("models--*"):
        shutil.rmtree(mirrors)
    export_model(str(workdir), workdir / "fetched")
    print("exported", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
