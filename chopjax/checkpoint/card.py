"""The model card (README.md) of a checkpoint that chopjax changed, from its chopjax.json. No jax.

Whoever writes a new chopjax.json writes the card with it. The parent's own card stays beside it as
PARENT_README.md; the licence and the languages that it states are the new card's, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from chopjax.checkpoint import (
    card_changes,
    card_classification,
    card_quantization,
    card_sparsity,
    card_width,
    structures,
)
from chopjax.checkpoint.assets import CARD, PARENT_CARD
from chopjax.checkpoint.provenance import (
    CHOP,
    CLASSIFICATION,
    SCRATCH,
    TRAINING,
    WIDTH,
    entries,
    read_provenance,
    write_provenance,
)
from chopjax.checkpoint.structure import Structure, off_rhythm
from chopjax.checkpoint.training_record import ADAPTERS, FULL, hub_datasets, public_name
from chopjax.disk.atomic import new_file
from chopjax.disk.files import inside, read_json_object
from chopjax.errors import UserError
from chopjax.keep import ranges, removed

MARK = "<!-- written by chopjax from chopjax.json; without edits its hash is {} -->\n"
LONGEST_HEADER = 1 << 16  # bytes of a card that are looked at
_TAKEN = ("license", "license_name", "license_link", "language")  # of the parent's header


def write_record(folder: Path, record: Mapping[str, Any] | None) -> None:
    """Write chopjax.json into a new folder that has its other small files already, and the card
    unless nothing changed since the one that came along.

    record: None where the checkpoint has none.
    """
    if record is None or read_provenance(folder) == record:
        return
    write_provenance(folder, record)
    write_card(folder, record)


def write_card(folder: Path, record: Mapping[str, Any], measured: str = "") -> None:
    """Write README.md. measured: Markdown that goes between what was done and how to use it.

    A card that is not ours is kept as PARENT_README.md, unless one is there.
    """
    own, aside = folder / CARD, folder / PARENT_CARD
    if record["parent"]["name"] == SCRATCH:
        own.unlink(missing_ok=True)  # it came with the tokenizer and is about another model
    header = read_header(folder)
    if own.is_file() and not aside.exists() and not is_ours(own):
        own.rename(aside)
    with new_file(own, overwrite=True) as path:
        path.write_text(card(record, header, folder, measured), encoding="utf-8")


def is_ours(path: Path) -> bool:
    """Whether chopjax wrote this card, and nobody has edited it since."""
    pattern = re.escape(MARK).replace(re.escape("{}"), "([0-9a-f]{16})")
    text = path.read_bytes().decode("utf-8", errors="replace")
    match = re.search(pattern, text)
    return match is not None and match[1] == _hash(text.replace(match[0], "", 1))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card(
    record: Mapping[str, Any], header: Mapping[str, Any], folder: Path, measured: str = ""
) -> str:
    """Markdown. header: what read_header found. folder: where the card will be."""
    chops, trainings = entries(record, CHOP), entries(record, TRAINING)
    front = yaml.safe_dump(_front_matter(record, header, chops, trainings, folder), sort_keys=False)
    classifies = _classifies(record)
    rows = [f"| {name} | {_cell(value)} |" for name, value in _facts(record, chops, trainings)]
    head = f"---\n{front}---\n"
    parts = [
        f"# {_title(record, trainings)}",
        _sentence(record, trainings),
        "\n".join(["| | |", "| --- | --- |", *rows]),
        measured.strip(),
        card_classification.use(classifies) if classifies else _use(folder),
        _last_words(record, header, folder),
    ]
    body = "\n\n".join(part for part in parts if part) + "\n"
    return head + MARK.format(_hash(head + body)) + body


USE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is, or the name of its repository on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""
USE_WITH_PICTURES = (
    USE.replace("AutoModelForCausalLM", "AutoModelForImageTextToText")
    .replace("AutoTokenizer", "AutoProcessor")
    .replace("tokenizer =", "processor =")
)


def _use(folder: Path) -> str:
    return USE_WITH_PICTURES if _has_other_parts(folder) else USE


def _classifies(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The last entry of the history, where it is of a model taught to classify."""
    last: Mapping[str, Any] = record["history"][-1] if record["history"] else {}
    return last if last.get("step") == CLASSIFICATION else None


def _structure(folder: Path) -> tuple[Structure, dict[str, Any]] | None:
    """The registry's row and config.json, where both are there."""
    path = inside(folder, "config.json")
    raw = read_json_object(path) if path else {}
    structure = structures.find(raw)
    return None if structure is None else (structure, raw)


def _has_other_parts(folder: Path) -> bool:
    """Whether more than a decoder is in it, a vision tower say."""
    found = _structure(folder)
    return found is not None and bool(found[0].inside)


def _spelled_out(folder: Path, num_layers: int) -> list[str]:
    """The lists of config.json without which its layers would be taken for others."""
    found = _structure(folder)
    try:
        return off_rhythm(*found, num_layers) if found else []
    except UserError:  # a record of other layers than config.json has
        return []


# -------------------------------------------------------------------------------------- Header


def read_header(folder: Path) -> dict[str, Any]:
    """Licence and languages as a folder's README.md states them, or else its licence's file.

    Nothing where neither says anything that can be read.
    """
    path = inside(folder, CARD)
    header = _yaml_of(_beginning(path)) if path else {}
    taken = {key: value for key in _TAKEN if _is_plain(value := header.get(key))}
    if "license" in taken:
        return taken
    files = sorted(p.name for p in folder.glob("LICENSE*") if p.is_file())
    if files and (licence := inside(folder, files[0])):
        taken |= _licence_of(_beginning(licence), files[0])
    return taken


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(LONGEST_HEADER).decode("utf-8", errors="replace")


def _yaml_of(text: str) -> dict[str, Any]:
    """The front matter of a card; somebody else's, so that whatever is wrong with it is nothing."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    try:
        value = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_plain(value: Any) -> bool:
    """A short string, or a few of them."""
    values = value if isinstance(value, list) else [value]
    plain = (isinstance(v, str) and 0 < len(v) < 300 and v.isprintable() for v in values)
    return 0 < len(values) < 100 and all(plain)


def _licence_of(text: str, name: str) -> dict[str, Any]:
    """By the hub's name where the text is one that we know by its first words."""
    words = " ".join(text.split())[:200].lower()
    if words.startswith("apache license version 2.0"):
        return {"license": "apache-2.0"}
    if words.startswith("mit license"):
        return {"license": "mit"}
    return {"license": "other", "license_name": "see-file", "license_link": name}


def _front_matter(
    record: Mapping[str, Any],
    header: Mapping[str, Any],
    chops: Sequence[Mapping[str, Any]],
    trainings: Sequence[Mapping[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    tags = ["chopjax"]
    tags += ["layer-pruning"] if chops else []
    tags += ["weight-pruning"] if card_sparsity.with_zeros(record) else []
    tags += ["width-pruning"] if entries(record, WIDTH) else []
    tags += ["compressed-tensors"] if card_quantization.last_format(record)[1] else []
    tags += ["continued-pretraining"] if trainings and record["parent"]["name"] != SCRATCH else []
    task = "image-text-to-text" if _has_other_parts(folder) else "text-generation"
    if card_classification.has_classifier(_classifies(record)):
        task = "text-classification"
    library = "peft" if card_classification.has_prefix(_classifies(record)) else "transformers"
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": task}
    front |= header
    if _is_on_hub(record):
        front["base_model"] = record["parent"]["name"]
    if datasets := hub_datasets(trainings):
        front["datasets"] = datasets
    return front | {"tags": tags}


def _is_on_hub(record: Mapping[str, Any]) -> bool:
    """Whether the parent was given as a name of the hub: those alone have a commit."""
    return bool(record["parent"].get("revision"))


# ---------------------------------------------------------------------------------------- Text


def _name(record: Mapping[str, Any]) -> str:
    name = str(record["parent"]["name"])
    return name if _is_on_hub(record) else public_name(name)


def _layers(record: Mapping[str, Any]) -> str:
    kept, total = len(record["kept_layers"]), record["parent"]["num_layers"]
    return f"{total} layers" if kept == total else f"{kept} of {total} layers"


def _title(record: Mapping[str, Any], trainings: Sequence[Mapping[str, Any]]) -> str:
    healed = ", healed" if trainings and entries(record, CHOP) else ""
    return f"{_name(record)}, {_layers(record)}{healed}"


def _sentence(record: Mapping[str, Any], trainings: Sequence[Mapping[str, Any]]) -> str:
    kept, total = len(record["kept_layers"]), record["parent"]["num_layers"]
    if record["parent"]["name"] == SCRATCH:
        what = f"A model of {_layers(record)}, trained from random weights"
    else:
        some = f"with {kept} of its {total} layers" if kept < total else "with all of its layers"
        how = ", healed by" if kept < total else ", after"
        what = f"{_name(record)} {some}{f'{how} continued pretraining' if trainings else ''}"
    return f"{what}. Made with chopjax."


Facts = list[tuple[str, str]]


def _facts(
    record: Mapping[str, Any],
    chops: Sequence[Mapping[str, Any]],
    trainings: Sequence[Mapping[str, Any]],
) -> Facts:
    parent, keep = record["parent"], tuple(record["kept_layers"])
    revision = f" at {parent['revision']}" if parent.get("revision") else ""
    facts = [("parent", f"{_name(record)}{revision}")]
    if chops:
        facts += [
            ("layers kept", f"{ranges(keep)} (0-based, of {parent['num_layers']})"),
            ("layers removed", ranges(removed(keep, parent["num_layers"])) or "none"),
            ("strategy", _strategies(chops)),
        ]
        facts += [("repair", repairs)] if (repairs := _repairs(chops)) else []
    number = 0
    for entry in record["history"]:  # in the order in which it was done
        facts += card_changes.facts(entry, record["history"])
        if entry.get("step") == TRAINING:
            number += 1
            many = f" {number}" if len(trainings) > 1 else ""
            facts += [(f"training{many}: {name}", value) for name, value in _training(entry)]
        elif entry.get("step") == CLASSIFICATION:
            facts += card_classification.facts(entry)
    return [*facts, ("made with", f"chopjax {record.get('chopjax_version')}")]


def _strategies(chops: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for entry in chops:
        about = [
            f"{key} {_setting(value)}"
            for key, value in (entry.get("settings") or {}).items()
            if value not in (None, "", [], {}) and key != "repair"
        ]
        shown.append(f"{entry.get('strategy')}" + (f" ({', '.join(about)})" if about else ""))
    return "; then ".join(shown)


def _setting(value: Any) -> str:
    """Of what layers were measured on, the text; of a folder or file on this machine the last
    part."""
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        names = ", ".join(public_name(str(name)) for name in value["data"])
        return f"on {_count(value.get('tokens'))} tokens of {names}"
    return public_name(str(value))


def _repairs(chops: Sequence[Mapping[str, Any]]) -> str:
    """What was folded into the weights that stayed, of a record that may be anybody's."""
    shown = []
    for entry in chops:
        repair = (entry.get("settings") or {}).get("repair")
        if isinstance(repair, dict):
            folded = repair.get("folded")
            names = [str(name) for name in folded] if isinstance(folded, list) else []
            some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            shown.append(f"{repair.get('kind')}, without training; changed: {some or 'nothing'}")
    return "; then ".join(shown)


def _with_new_biases(record: Mapping[str, Any]) -> bool:
    repairs = ((entry.get("settings") or {}).get("repair") for entry in entries(record, CHOP))
    return any(isinstance(repair, dict) and repair.get("added") for repair in repairs)


def _training(entry: Mapping[str, Any]) -> Facts:
    """The rows of one training run, of a record that may be anybody's."""
    about, rate = entry.get("optimizer") or {}, entry.get("learning_rate") or {}
    kind = {FULL: "all weights", ADAPTERS: "adapters alone"}.get(
        str(entry.get("kind")), f"of kind {entry.get('kind')}"
    )
    optimizer = (
        f"{about.get('name')}, betas {about.get('b1')} and {about.get('b2')}, weight decay "
        f"{about.get('weight_decay')}, clip norm {about.get('clip_norm')}"
    )
    learning_rate = (
        f"peak {rate.get('peak')}, warm-up {rate.get('warmup_steps')} steps, "
        f"final fraction {rate.get('final_fraction')} at step {rate.get('total_steps')} "
        f"({rate.get('schedule')})"
    )
    before = entry.get("chop_after_steps")
    batch = f"{entry.get('batch_size')} sequences of {entry.get('sequence_length')} tokens"
    shape = entry.get("shape_of")
    facts = [("shape", _shape(shape))] if isinstance(shape, dict) else []
    facts += [
        (
            "length",
            f"{_count(entry.get('steps'))} steps, {_count(entry.get('tokens'))} tokens, {kind}"
            + (", zeros kept" if entry.get("masks") == "fixed" else "")
            + (f"; the first {_count(before)} with all layers" if before else ""),
        ),
        ("optimizer", optimizer),
        ("learning rate", learning_rate),
        ("batch", f"{batch}, seed {entry.get('seed')}"),
    ]
    if isinstance(adapter := entry.get("adapter"), dict):
        alpha, onto = adapter.get("alpha") or "as the rank", entry.get("merged_onto")
        lora = (
            f"LoRA of rank {adapter.get('rank')}, alpha {alpha}, dropout {adapter.get('dropout')}, "
            f"on {adapter.get('targets')}; base in {adapter.get('base')}"
        )
        facts.append(("adapters", lora + (f"; merged onto the {onto} weights" if onto else "")))
    facts += [("teacher", _teacher(teacher))] if (teacher := entry.get("teacher")) else []
    facts += [("data", _store(store)) for store in entry.get("data") or ()]
    if held_out := entry.get("held_out"):
        data = f" of {_store(held_out['data'])}" if held_out.get("data") else ""
        loss = f"{held_out['window_loss']:.4f} nats per token over {_count(held_out.get('tokens'))}"
        facts.append(("window loss", f"{loss} tokens{data}: {held_out.get('convention')}"))
    return facts


def _teacher(about: Mapping[str, Any]) -> str:
    """Who taught, and what of the loss is its: all of the rest is the next token's."""
    terms = ("hidden", "attention", "embedding", "mimic")
    weights = [f"{name} {about[name]}" for name in terms if about.get(name)]
    divergence = f"divergence {about.get('logits')} at temperature {about.get('temperature')}"
    if top := about.get("top_k"):
        divergence += f", of {top} tokens and the rest as one"
    revision = f" at {about['revision']}" if about.get("revision") else ""
    taught = f", layers {ranges(about['layers'])}" if about.get("layers") else ""
    name = about.get("name") or "logits stored with the data"
    return f"{name}{revision}{taught}: {', '.join([divergence, *weights])}"


def _shape(shape: Mapping[str, Any]) -> str:
    """Whose shape random weights were given."""
    name = str(shape.get("name"))
    kept, total = shape.get("kept_layers"), shape.get("num_layers")
    layers = f"{len(kept)} of its {total} layers" if isinstance(kept, list) else "its layers"
    return f"that of {name if shape.get('revision') else public_name(name)} with {layers}"


def _store(store: Mapping[str, Any]) -> str:
    share = store.get("share")
    parts = [str(store.get("name") or "a token store")]
    parts += [f"{share:.1%} of the batches"] if isinstance(share, float) and share < 1 else []
    parts += [f"from {', '.join(map(str, store['sources']))}"] if store.get("sources") else []
    if isinstance(teacher := store.get("teacher"), dict):
        parts.append(f"its likeliest next tokens by {teacher.get('name')}")
    return f"{', '.join(parts)} (fingerprint {str(store.get('fingerprint'))[:16]})"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(text: str) -> str:
    """Text that cannot end a table's cell."""
    return " ".join(text.replace("|", "\\|").split())


def _last_words(record: Mapping[str, Any], header: Mapping[str, Any], folder: Path) -> str:
    sentences = ["`chopjax.json` holds the full record."]
    if record["parent"]["name"] == SCRATCH:
        return sentences[0]
    lists = _spelled_out(folder, len(record["kept_layers"]))
    first = (
        "Nothing but weights and the number of layers differs from the parent, so whatever runs "
        "the parent runs this."
    )
    kind, quantized = card_quantization.last_format(record)
    if entries(record, WIDTH):
        first = card_width.NOTE
    if quantized:  # not whatever runs the parent
        first = card_quantization.NOTE
    if lists:
        first = (
            f"Which layer is of which kind is spelled out in config.json ({', '.join(lists)}): the "
            "layers left do not follow the family's pattern. What derives it from a layer's index, "
            "as llama.cpp's converter and older versions of transformers do, misreads this model."
        )
    if card_classification.has_classifier(_classifies(record)):
        first = (
            "In place of the language model's head stands `score.weight`, which tells the classes "
            "apart: this model writes no text."
        )
    if card_classification.has_prefix(_classifies(record)):
        first = (
            "What was trained are virtual tokens before every prompt: without them `base` does not "
            "give these labels."
        )
    sentences.insert(0, first)
    if card_sparsity.with_zeros(record):
        sentences.insert(1, card_sparsity.NOTE)
    if quantized and first != card_quantization.NOTE:
        sentences.insert(1, card_quantization.NOTE)
    if kind and not quantized:
        sentences.insert(1, card_quantization.floats_note(kind))
    if _with_new_biases(record):
        biases = "In the repair, biases were added to the feed-forward (`mlp_bias` in config.json)"
        if lists or quantized:
            sentences.insert(1, f"{biases}.")
        else:  # in place of what does not hold with them
            sentences[0] = f"{biases}: what runs the parent runs this if it reads that key."
    if (folder / PARENT_CARD).is_file():
        sentences.append(f"The parent's card is [{PARENT_CARD}]({PARENT_CARD}).")
    if _is_on_hub(record):
        name = record["parent"]["name"]
        sentences.append(f"The parent is [{name}](https://huggingface.co/{name}).")
    licence = f" ({header['license']})" if isinstance(header.get("license"), str) else ""
    return " ".join([*sentences, f"The parent's licence{licence} and its limits apply."])
