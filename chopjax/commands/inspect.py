"""`chopjax inspect`: what a checkpoint holds, from its headers alone, or config.json's alone; and
what a token store holds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from chopjax.commands.inspect_tables import bytes_of, history_facts, new_table

if TYPE_CHECKING:
    from chopjax.checkpoint.source import Files
    from chopjax.models.config import ModelConfig

EXAMPLE = """\
chopjax inspect HuggingFaceTB/SmolLM-135M
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="?",
        help="folder of a Hugging Face checkpoint, hub id owner/name, folder of `chopjax import`, "
        "or workdir of a training run; a config.json, alone in its folder or by its own path; or a "
        "token store of `chopjax prepare`",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add("--step", type=int, metavar="N", help="checkpoint of a training run (default: the latest)")
    add(
        "--sequence-length",
        type=int,
        metavar="T",
        help="tokens for the FLOPs (default: the context length, 2048 at most)",
    )
    add(
        "--check",
        action="store_true",
        help="read all weights and name those with NaN or infinity; of "
        "a token store, compare its checksums",
    )
    add(
        "--families",
        action="store_true",
        help="instead of a MODEL: list the model types, and what chopjax can do with each",
    )
    add("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    from chopjax.errors import UserError
    from chopjax.terminal import print_json

    if args.sequence_length is not None and args.sequence_length < 1:
        raise UserError(f"--sequence-length {args.sequence_length}: at least 1 is needed")
    if args.families:
        from chopjax.commands.inspect_files import run_families

        return run_families(args)
    if args.model is None:
        raise UserError("give a MODEL to look at, or --families")
    if _is_store(args.model):
        return _run_stores(args)
    known = _config_alone(args) or _model(args)
    if not isinstance(known, tuple):
        from chopjax.commands.inspect_files import run_files

        return run_files(args, known)
    config, result = known
    result |= _plan(config, args.sequence_length or min(config.max_positions, 2048))
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _is_store(name: str) -> bool:
    from chopjax.data.store import PARTS, STORE
    from chopjax.disk.files import expanded

    folder = expanded(name)
    return any((folder / part / STORE).is_file() for part in ("", *PARTS))


def _run_stores(args: argparse.Namespace) -> int:
    from chopjax.commands.store_tables import show_stores, verify_stores
    from chopjax.data.store import open_stores
    from chopjax.errors import UserError

    for flag in ("step", "revision", "sequence_length"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')}: {args.model} is a token store")
    stores = open_stores(args.model)
    if args.check:
        verify_stores(stores)
    show_stores(stores, args.json)
    return 0


def _model(args: argparse.Namespace) -> tuple[ModelConfig, dict[str, Any]] | Files:
    """Files where chopjax can chop it and not compute with it, and of what `chopjax quantize` wrote
    unless the numbers are asked for."""
    from chopjax.checkpoint.compressed_tensors import held_as
    from chopjax.checkpoint.describe import describe, is_own, of_checkpoint
    from chopjax.checkpoint.open import open_checkpoint, open_to_chop
    from chopjax.checkpoint.source import Checkpoint
    from chopjax.checkpoint.summary import summary

    if args.step is not None or is_own(args.model):
        description = describe(args.model, args.revision, args.step)
    else:
        files = open_to_chop(args.model, args.revision)
        if held_as(files.raw_config) and (args.check or args.sequence_length):
            files = open_checkpoint(args.model, args.revision)
        if not isinstance(files, Checkpoint):
            return files
        description = of_checkpoint(files)
    result = summary(description)
    if args.check:
        from chopjax.checkpoint.verify import check

        result["not_finite"] = check(description)
    return description.config, result


def _config_alone(args: argparse.Namespace) -> tuple[ModelConfig, dict[str, Any]] | None:
    """None where MODEL is something else."""

    from chopjax.checkpoint.computed import translate
    from chopjax.checkpoint.describe import has_weights, is_config, local_config
    from chopjax.checkpoint.provenance import read_provenance
    from chopjax.checkpoint.summary import summary_of_config
    from chopjax.disk.files import expanded
    from chopjax.errors import UserError

    path = expanded(args.model)
    folder = path.parent if is_config(path) else path
    alone = path.is_dir() and (path / "config.json").is_file() and not has_weights(path)
    if not (alone or is_config(path)):
        return None
    for flag in ("check", "step", "revision"):
        if getattr(args, flag) not in (None, False):
            raise UserError(f"--{flag}: {args.model} is a config.json without weights")
    raw_config = local_config(args.model)
    assert raw_config is not None
    config = translate(raw_config)[1]
    reason = "none are there" if not has_weights(folder) else f"not looked at; give {folder}"
    result = summary_of_config(args.model, raw_config, read_provenance(folder))
    return config, result | {"no_weights": f"{reason}. All of this follows from config.json"}


def _plan(config: ModelConfig, length: int) -> dict[str, Any]:
    import dataclasses

    from chopjax.models import flops
    from chopjax.train import memory

    return {
        "training_memory": [
            dataclasses.asdict(choice) | {"total": choice.total}
            for choice in memory.choices(config)
        ],
        "flops_per_token": {
            "sequence_length": length,
            "conventions": [dataclasses.asdict(c) for c in flops.conventions(config, length)],
        },
    }


def _print(result: dict[str, Any]) -> None:
    from chopjax.terminal import console

    screen = console()
    if not screen.is_terminal:
        screen = console(width=160)  # a file or a pipe has no width to keep to
    tensors = _tensors(result, wide=screen.width >= 110)
    for table in (_facts(result), tensors, _memory(result), _flops(result)):
        screen.print(table)
        screen.print()
    if "not_finite" in result:
        names = result["not_finite"]
        screen.print(f"NaN or infinity: {', '.join(names) or 'none'}")


def _facts(result: dict[str, Any]) -> Any:
    from rich.text import Text

    from chopjax.errors import escaped

    revision = f" at {result['revision'][:12]}" if result["revision"] else ""
    table = new_table(f"{escaped(result['model'])}{revision} ({result['kind']})", "", "")
    for name, value in (_shape_facts(result["config"]) | _size_facts(result)).items():
        table.add_row(name, Text(escaped(value)))
    return table


def _shape_facts(config: dict[str, Any]) -> dict[str, str]:
    gated = "gated " if config["gated_mlp"] else ""
    mlp = f"{config['mlp_dim']:,}, {gated}{config['activation']}"
    if experts := config["experts"]:
        mlp += f"; {experts['count']} experts, {experts['per_token']} a token"
    tied = "tied" if config["tie_embeddings"] else "untied"
    return {
        "family": config["family"],
        "layers": _layers(config),
        "width": f"{config['embed_dim']:,}",
        "heads": f"{config['num_heads']} query, {config['num_kv_heads']} key/value, "
        f"of {config['head_dim']}",
        "feed-forward": mlp,
        "vocabulary": f"{config['vocab_size']:,}, {tied} head",
        "positions": _positions(config),
        "norm": f"{config['norm']['kind']}, epsilon {config['norm']['epsilon']:g}",
    }


def _positions(config: dict[str, Any]) -> str:
    """The context, and how tokens know where they stand."""
    ways = {"learned": "learned", "alibi": "ALiBi"}
    if config["positions"] in ways:
        return f"{config['max_positions']:,}, {ways[config['positions']]}"
    ropes = {str(run["rope"]): run["rope"] for run in config["layers"] if run["rope"]}
    without = sum(run["count"] for run in config["layers"] if not run["rope"])
    parts = [_rope(rope, config["head_dim"]) for rope in ropes.values()]
    parts += [f"none in {without} layers"] if without else []
    return f"{config['max_positions']:,}, {'; '.join(parts)}"


def _rope(rope: dict[str, Any], head_dim: int) -> str:
    text = f"RoPE of base {rope['theta']:,.10g}"
    if rope["kind"] == "longrope":
        text += ", longrope"
    elif rope["kind"] != "default":
        text += f", {rope['kind']} x{rope['factor']:g}"
    return text + (f", on {rope['dims']} of a head's {head_dim}" if rope["dims"] else "")


def _layers(config: dict[str, Any]) -> str:
    """ "32", or "26: 22 with a window of 512, 4 full (5,11,17,23)": the rarer kind's places."""
    from chopjax.keep import ranges

    places: dict[int | None, list[int]] = {}
    first = 0
    for run in config["layers"]:
        places.setdefault(run["window"], []).extend(range(first, first + run["count"]))
        first += run["count"]
    if not any(places):
        return f"{config['num_layers']}"
    rarest = min(places, key=lambda window: len(places[window]))
    parts = []
    for window, layers in places.items():
        text = f"{len(layers)} " + (f"with a window of {window:,}" if window else "full")
        rare = len(places) > 1 and window == rarest
        parts.append(f"{text} ({ranges(layers)})" if rare else text)
    return f"{config['num_layers']}: {', '.join(parts)}"


def _size_facts(result: dict[str, Any]) -> dict[str, str]:
    counts = result["parameters"]
    share = counts["blocks"] / counts["total"]
    sizes = [f"{bytes_of(size)} in {dtype}" for dtype, size in result["bytes_by_dtype"].items()]
    facts = {
        "parameters": f"{counts['total']:,}"
        + (f" ({counts['active']:,} active)" if counts["active"] < counts["total"] else ""),
        "  a layer": f"{counts['per_layer']:,} (all layers: {share:.1%})",
        "  embeddings": f"{counts['embeddings']:,} (tables and head)",
        "  take": ", ".join(sizes),
    }
    facts["size"] = f"{bytes_of(result['bytes'])}, config.json says {result['dtype'] or 'no type'}"
    if not result["weights"]:
        facts["size"] = f"would be {facts['size']}"
        facts["weights"] = result["no_weights"]
    return facts | history_facts(result["provenance"])


def _tensors(result: dict[str, Any], wide: bool) -> Any:
    """`wide` adds a column: which parameter a tensor becomes."""
    from rich.text import Text

    columns = ["tensor", "layers", "shape", "type", "size"]
    if wide:
        columns.append("parameter, its axes")
    table = new_table("Tensors", *columns, right=("layers", "size"))
    for row in result["tensors"]:
        cells = [
            Text(row["name"]),
            _times(row),
            " x ".join(map(str, row["shape"])),
            "/".join(row["dtypes"]),
            bytes_of(row["bytes"]),
        ]
        if wide:
            cells.append(Text(f"{' '.join(row['parameters'])}, {row['axes']}"))
        table.add_row(*cells)
    if wide:
        table.caption = (
            "L layers, V vocabulary, D width, N query heads, K key/value heads, H head size, "
            "F feed-forward, X experts, P positions"
        )
        table.caption_justify = "left"
    return table


def _times(row: dict[str, Any]) -> str:
    """How many tensors of a kind there are; nothing outside the blocks."""
    if row["layers"] is None:
        return ""
    return f"{row['layers']} x {row['experts']} experts" if row["experts"] else f"{row['layers']}"


def _memory(result: dict[str, Any]) -> Any:
    numbers = ("params", "gradients", "moments", "total")
    table = new_table(
        "Training state of all weights, over all devices together (activations come on top)",
        "optimizer", "params in", "momentum in", *numbers,
        right=numbers,
    )  # fmt: skip
    for row in result["training_memory"]:
        names = (row["optimizer"], row["param_dtype"], row["momentum_dtype"])
        table.add_row(*names, *(bytes_of(row[key]) for key in numbers))
    return table


def _flops(result: dict[str, Any]) -> Any:
    flops = result["flops_per_token"]
    numbers = ("forward", "training")
    table = new_table(
        f"FLOPs a token, at sequence length {flops['sequence_length']:,}",
        *numbers, "formula of training",
        right=numbers,
    )  # fmt: skip
    for row in flops["conventions"]:
        table.add_row(*(f"{row[key]:.4g}" for key in numbers), row["formula"])
    return table
