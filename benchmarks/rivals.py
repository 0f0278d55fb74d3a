"""What does the same share of a model cost by each way of making it smaller?

    python benchmarks/rivals.py --shared DIR [--model DIR] [--workdir DIR]
        [--sequences 128] [--sequence-length 256] [--only NAME,…] [--json]

DIR is a folder with models/mix-llama-12l and corpora/ (see CONTRIBUTING.md). Every rival is made by
its verb from the same parent, on the same text, without training, and measured by `chopjax
perplexity` on stories that no rival has seen. May be killed: what is made stays in the workdir, and
so does what is measured; the same command goes on, and other settings want another --workdir. At
its end stands the table for RESULTS.md.

A row's cost: parameters as the file has them, those that are not zero, and the bytes on disk. The
bytes of zeros are counted like any others, since no format that is still read leaves them out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from chopjax import cli
from chopjax.checkpoint.open import open_checkpoint
from chopjax.models import parameters
from chopjax.narrow.units import make_plan, narrower, shares_that_work

TEXTS = "mixed.train.jsonl", "tinystories.heldout.jsonl"  # looked at, measured on
METHODS, PATTERNS = ("magnitude", "wanda", "sparsegpt"), ("2:4", "4:8", "0.5")
SCORES = ("activation", "gradient")  # of what is narrowed


class Rival(NamedTuple):
    """words: of the verb that makes it, without MODEL and OUT; none for the parent itself."""

    name: str
    words: tuple[str, ...]


def rivals(model: Path, text: Path, sequences: int, length: int) -> list[Rival]:
    """Half of the layers and half of the blocks' weights, by every way that there is."""
    look = ("--data", str(text), "--sequences", str(sequences), "--sequence-length", str(length))
    chop = ("chop", "--strategy", "input", "--remove", "0.5")
    found = [Rival("parent", ()), Rival("chop by input", chop)]
    found.append(Rival("chop by input and repair", (*chop, "--repair", "linear", *look)))
    for pattern in PATTERNS:
        for method in METHODS:
            words = ("sparsify", "--method", method, "--pattern", pattern, *look)
            found.append(Rival(f"{method} {pattern}", words))
    shares = half_of_the_width(model)
    flags = [word for kind, share in shares.items() for word in (f"--{kind}", str(share))]
    named = " ".join(f"{kind}={share}" for kind, share in shares.items())
    for method in SCORES:
        words = ("narrow", *flags, "--method", method, *look)
        found.append(Rival(f"narrow {named} by {method}", words))
    return found


def half_of_the_width(model: Path) -> dict[str, float]:
    """Flags of `chopjax narrow` that take about half of the blocks' weights: of the heads the share
    nearest to a quarter that works, and what is missing then of the hidden units."""
    checkpoint = open_checkpoint(str(model))
    family, raw, config = checkpoint.family, checkpoint.raw_config, checkpoint.config
    works = shares_that_work(family, raw, config, "heads")
    shares = {"heads": min(works, key=lambda share: abs(share - 0.25))} if works else {}
    left = config
    if shares:
        left = make_plan(family, raw, config, shares).config
    one_less = narrower(left, {"mlp": left.mlp_dim - 1})
    unit = parameters.count_per_layer(left) - parameters.count_per_layer(one_less)
    missing = parameters.count_per_layer(left) - parameters.count_per_layer(config) / 2
    return {"mlp": round(missing / unit / left.mlp_dim, 2), **shares}


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--shared", type=Path, default=os.environ.get("CHOPJAX_SHARED"))
    parser.add_argument("--model", type=Path, help="by default models/mix-llama-12l of --shared")
    parser.add_argument("--workdir", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--only", help="names of rows, several separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    if args.shared is None:
        parser.error("--shared DIR, or CHOPJAX_SHARED, is needed")
    shared = Path(args.shared)
    model = args.model or shared / "models" / "mix-llama-12l"
    text, held_out = (shared / "corpora" / name for name in TEXTS)
    wanted = rivals(model, text, args.sequences, args.sequence_length)
    if args.only:
        names = args.only.split(",")
        if unknown := set(names) - {rival.name for rival in wanted}:
            parser.error(f"--only: there is no row {', '.join(sorted(unknown))}")
        wanted = [rival for rival in wanted if rival.name in names]
    args.workdir.mkdir(parents=True, exist_ok=True)
    rows = {}
    for rival in wanted:
        folder = made(rival, model, args.workdir)
        rows[rival.name] = size(folder) | {"loss": loss(folder, held_out, args.workdir)}
    print("\n".join(markdown(rows)))
    if args.json:
        print(json.dumps({"rows": rows, "unit": "loss in nats a token, held out"}))
    return 0


def made(rival: Rival, model: Path, workdir: Path) -> Path:
    """The rival's folder, made unless it is there."""
    if not rival.words:
        return model
    out = workdir / rival.name.replace(" ", "-").replace(":", "of")
    verb, *flags = rival.words
    if not out.exists() and cli.main([verb, str(model), str(out), *flags]):
        raise SystemExit(f"{rival.name}: not made")
    return out


def size(folder: Path) -> dict[str, int]:
    """Parameters, those that are not zero, and bytes of tensors."""
    checkpoint = open_checkpoint(str(folder))
    arrays = [checkpoint.array(binding.source) for binding in checkpoint.match.bindings]
    return {
        "parameters": sum(array.size for array in arrays),
        "not_zero": sum(int(np.count_nonzero(array)) for array in arrays),
        "bytes": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
    }


def loss(folder: Path, text: Path, workdir: Path) -> float:
    """Nats a token of whole documents, measured once."""
    kept = workdir / f"{folder.name}.loss.json"
    if not kept.is_file():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            if cli.main(["perplexity", str(folder), "--data", str(text), "--json"]):
                raise SystemExit(f"{folder}: not measured")
        kept.write_text(said.getvalue())
    measured: float = json.loads(kept.read_text())["nats_per_token"]
    return measured


def markdown(rows: dict[str, Any]) -> list[str]:
    """The table, as RESULTS.md has it. Losses beside the parent's, where it is a row."""
    parent = rows.get("parent", {}).get("loss")
    lines = [
        "",
        "| | parameters | not zero | bytes | held-out nats a token | more than the parent |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, row in rows.items():
        more = f"{row['loss'] - parent:+.3f}" if parent is not None and name != "parent" else ""
        cells = [f"{row[key]:,}" for key in ("parameters", "not_zero", "bytes")]
        cells += [f"{row['loss']:.3f}", more]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
