"""The best model of a grid as a Hugging Face checkpoint.

With the `lm` head it is the causal language model; with the `classifier` head what transformers'
AutoModelForSequenceClassification loads: the decoder without its head, and `score.weight` [C, E].
Weights are written in float32, as they were trained, so that the labels are the same.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.checkpoint.assets import copy_assets
from chopjax.checkpoint.describe import Description, places_of
from chopjax.checkpoint.export import export
from chopjax.checkpoint.provenance import CLASSIFICATION, add_entry, compose
from chopjax.checkpoint.writer import Tensor
from chopjax.chop.choice import Choice
from chopjax.chop.surgery import chop_config
from chopjax.classify.learner import Question
from chopjax.classify.model import SCORE
from chopjax.classify.results import Row
from chopjax.classify.templates import Template
from chopjax.classify.ways import HeadKind, MethodKind
from chopjax.data.tokenizer import build
from chopjax.disk.files import read_json_object
from chopjax.errors import UserError
from chopjax.models.adapter_settings import scale_of
from chopjax.models.families.table import Naming
from chopjax.models.parameters import Params

# model_type → transformers' class with a head that classifies, of those that are tested.
CLASSIFIERS = {
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "opt": "OPTForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}
TOKENIZER_CONFIG = "tokenizer_config.json"


def check_saving(
    description: Description, heads: Iterable[HeadKind], methods: Iterable[MethodKind]
) -> None:
    """Raises UserError where the best of such a grid could not be saved."""
    kind = description.raw_config.get("model_type")
    if "prefix" in methods:
        raise UserError(
            "--save: virtual tokens of --method prefix are no part of a checkpoint; leave one of "
            "the two out"
        )
    if "classifier" in heads and kind not in CLASSIFIERS:
        raise UserError(
            f"--save: a classifier of model_type {kind} is not written; of "
            f"{', '.join(CLASSIFIERS)} one is. Leave --save out, or take --head lm"
        )
    if "classifier" in heads:
        _pad_id(description)


@dataclasses.dataclass(frozen=True)
class Best:
    """What is saved. params: the decoder's. trainable: what was trained; {} for nothing. before:
    what every prompt begins with."""

    question: Question
    choice: Choice
    row: Row
    params: Params
    trainable: Params
    template: Template
    before: str


def save(description: Description, best: Best, out: Path, overwrite: bool) -> None:
    """Write the checkpoint, with the template in chopjax.json and on the model card."""
    family, keep = description.family, best.choice.keep
    config = description.config.keep(keep)
    raw_config = chop_config(description.raw_config, family, keep)
    params, own_head = merged(best), best.question.head == "classifier"
    naming, more = description.naming, []
    if own_head:
        # Without its own head a decoder has the tensors of one whose head is tied.
        config = dataclasses.replace(config, tie_embeddings=True, head_bias=False)
        table = family.embedding_row.source.replace("{p}", family.prefixes[0])
        naming = Naming(family.prefixes[0], (table,), naming.head)
        params = _without_head(params)
        weight_CE = np.ascontiguousarray(np.asarray(best.trainable[SCORE]["kernel"]).T)
        more = [Tensor("score.weight", "F32", weight_CE.shape, weight_CE)]
        raw_config = _classifying(raw_config, best.template, _pad_id(description))
    with tempfile.TemporaryDirectory() as folder:
        copy_assets(description.folder, Path(folder))
        if own_head:
            _pad_on_the_right(Path(folder), description, _pad_id(description))
        export(
            config,
            raw_config,
            params,
            Path(folder),
            out,
            naming,
            "float32",
            _record(description, best),
            more=more,
            metadata=description.metadata,
            overwrite=overwrite,
            protect=(description.folder, *places_of(description)),
        )


def merged(best: Best) -> Params:
    """The decoder's parameters as they were trained, on the host; adapters added in float32."""
    method = best.question.method
    if method == "full":
        trained: Params = {name: leaf for name, leaf in best.trainable.items() if name != SCORE}
        if "head" in best.params:  # what a classifier left out
            trained["head"] = best.params["head"] | trained.get("head", {})
        return jax.tree.map(np.asarray, trained)  # type: ignore[no-any-return]
    flat = flatten_dict(jax.tree.map(np.asarray, best.params), sep="/")
    if method == "lora":
        added = flatten_dict(best.trainable, sep="/")
        scale = np.float32(scale_of(best.question.adapter))
        for path in [path.removesuffix("/a") for path in added if path.endswith("/a")]:
            a_L, b_L = np.asarray(added[f"{path}/a"]), np.asarray(added[f"{path}/b"])
            products = [np.tensordot(a, b, 1) for a, b in zip(a_L, b_L, strict=True)]
            flat[path] = flat[path] + scale * np.stack(products)
    nested: Params = unflatten_dict(flat, sep="/")
    return nested


def _without_head(params: Params) -> Params:
    """OPT's projection before the head stays."""
    head = {n: p for n, p in params.get("head", {}).items() if n not in ("kernel", "bias")}
    rest = {name: leaf for name, leaf in params.items() if name != "head"}
    return rest | ({"head": head} if head else {})


def _classifying(raw_config: Mapping[str, Any], template: Template, pad_id: int) -> dict[str, Any]:
    return dict(raw_config) | {
        "architectures": [CLASSIFIERS[raw_config["model_type"]]],
        "id2label": {str(label): word for label, word in enumerate(template.words)},
        "label2id": {word: label for label, word in enumerate(template.words)},
        "pad_token_id": pad_id,
        "problem_type": "single_label_classification",
    }


def _pad_id(description: Description) -> int:
    """What stands behind shorter prompts of a batch: the model's padding token, or else its end.

    Raises UserError where the tokenizer has neither."""
    built = build(description.folder, description.name)
    for found in (built.pad_token_id, built.eos_token_id, built.bos_token_id):
        if isinstance(found, int) and found < description.config.vocab_size:
            return found
    raise UserError(
        f"{description.name}: its tokenizer has no token to pad with (pad, eos or bos), which a "
        "classifier that others load needs; leave --save out, or take --head lm"
    )


def _pad_on_the_right(folder: Path, description: Description, pad_id: int) -> None:
    """Left of a prompt, padding would move its positions."""
    path = folder / TOKENIZER_CONFIG
    token = build(description.folder, description.name).convert_ids_to_tokens(pad_id)
    told = read_json_object(path) if path.is_file() else {}
    told |= {"pad_token": token, "padding_side": "right"}
    path.write_text(json.dumps(told, indent=2) + "\n")


def _record(description: Description, best: Best) -> dict[str, Any]:
    """chopjax.json: the chop, where there was one, and what was taught."""
    name, revision, row = description.source, description.revision, best.row
    total, keep = description.config.num_layers, best.choice.keep
    record = description.provenance
    if len(keep) < total:
        chosen = best.choice
        record = compose(record, name, revision, total, chosen.strategy, chosen.settings, keep)
    own = ("method", "head", "seed", "settings", "train_examples", "epochs", "best_epoch")
    measured = ("held_out_accuracy", "test_examples", "accuracy", "macro_f1")
    about: dict[str, Any] = {"template": best.template.record(), "before": best.before}
    about["label_tokens"] = list(best.question.label_ids)
    about |= {field: row[field] for field in (*own, *measured)}
    return add_entry(CLASSIFICATION, record, name, revision, len(keep), about)
