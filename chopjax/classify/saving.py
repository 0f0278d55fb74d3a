"""The best model of a grid as a Hugging Face checkpoint.

With the `lm` head it is the causal language model; with the `classifier` head what transformers'
AutoModelForSequenceClassification loads: the decoder without its head, and `score.weight` [C, E].
Weights are written in float32, as they were trained, so that the labels are the same.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.checkpoint.assets import CARD, PARENT_CARD, assets, copy_assets
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.describe import Description, places_of
from chopjax.checkpoint.export import export
from chopjax.checkpoint.packed import say_decoded
from chopjax.checkpoint.peft_folder import BASE
from chopjax.checkpoint.provenance import CLASSIFICATION, add_entry, compose
from chopjax.checkpoint.writer import Tensor
from chopjax.chop.choice import Choice
from chopjax.chop.surgery import chop_config
from chopjax.classify.learner import Question
from chopjax.classify.model import SCORE
from chopjax.classify.prefix_files import write_prefix
from chopjax.classify.results import Row
from chopjax.classify.templates import Template
from chopjax.classify.ways import HeadKind, MethodKind
from chopjax.data.tokenizer import build
from chopjax.disk.atomic import new_folder
from chopjax.disk.files import expanded, read_json_object
from chopjax.errors import UserError
from chopjax.models.adapter_settings import scale_of
from chopjax.models.families.table import Naming
from chopjax.models.parameters import Params

# model_type → transformers' class with a head that classifies, where it has one.
CLASSIFIERS = {
    "arcee": "ArceeForSequenceClassification",
    "bloom": "BloomForSequenceClassification",
    "exaone4": "Exaone4ForSequenceClassification",
    "falcon": "FalconForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "glm": "GlmForSequenceClassification",
    "glm4": "Glm4ForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "gpt_neo": "GPTNeoForSequenceClassification",
    "gpt_neox": "GPTNeoXForSequenceClassification",
    "gptj": "GPTJForSequenceClassification",
    "helium": "HeliumForSequenceClassification",
    "hunyuan_v1_dense": "HunYuanDenseV1ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "ministral": "MinistralForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "mpt": "MptForSequenceClassification",
    "nemotron": "NemotronForSequenceClassification",
    "olmo": "OlmoForSequenceClassification",
    "olmo2": "Olmo2ForSequenceClassification",
    "olmo3": "Olmo3ForSequenceClassification",
    "opt": "OPTForSequenceClassification",
    "phi": "PhiForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "qwen3_moe": "Qwen3MoeForSequenceClassification",
    "seed_oss": "SeedOssForSequenceClassification",
    "smollm3": "SmolLM3ForSequenceClassification",
    "stablelm": "StableLmForSequenceClassification",
    "starcoder2": "Starcoder2ForSequenceClassification",
}
# model_types before which peft's virtual tokens were found to give our logits.
PREFIXES = ("gpt2", "llama", "opt", "qwen3")
PAPERS = (CARD, PARENT_CARD, "LICENSE", "NOTICE", "USE_POLICY")  # that go with virtual tokens
TOKENIZER_CONFIG = "tokenizer_config.json"


def check_saving(
    description: Description, heads: Iterable[HeadKind], methods: Iterable[MethodKind]
) -> None:
    """Raises UserError where the best of such a grid could not be saved."""
    kind = description.raw_config.get("model_type")
    if "prefix" in methods and kind not in PREFIXES:
        raise UserError(
            f"--save: virtual tokens of --method prefix before model_type {kind} are not written; "
            f"of {', '.join(PREFIXES)} they are. Leave --save or the method out"
        )
    if "classifier" in heads and kind not in CLASSIFIERS:
        raise UserError(
            f"--save: transformers has no class for a classifier of model_type {kind}; leave "
            "--save out, or take --head lm"
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
    """Write the checkpoint, with the template in chopjax.json and on the model card. Virtual tokens
    stand beside the model that they were trained before, which is in BASE then."""
    say_decoded(description.weights)
    protect, record = (description.folder, *places_of(description)), _record(description, best)
    if best.question.method != "prefix":
        _write_model(description, best, record, out, overwrite, protect)
        return
    own_head = best.question.head == "classifier"  # which is in that model, too
    of_base = record if own_head else _chop_record(description, best)
    with new_folder(out, "export", overwrite, protect) as folder:
        _write_model(description, best, of_base, folder / BASE)
        write_prefix(folder, best.trainable, expanded(out).absolute() / BASE)
        for name in assets(description.folder):
            if name.startswith(PAPERS):
                shutil.copyfile(description.folder / name, folder / name)
        write_record(folder, record)


def _write_model(
    description: Description,
    best: Best,
    record: Mapping[str, Any] | None,
    out: Path,
    overwrite: bool = False,
    protect: tuple[Path, ...] = (),
) -> None:
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
            record,
            more=more,
            metadata=description.metadata,
            overwrite=overwrite,
            protect=protect,
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


def _chop_record(description: Description, best: Best) -> dict[str, Any] | None:
    """chopjax.json of the model before anything was taught; None where it has none."""
    chosen, total = best.choice, description.config.num_layers
    record = description.provenance
    if len(chosen.keep) < total:
        name, revision = description.source, description.revision
        strategy, settings = chosen.strategy, chosen.settings
        record = compose(record, name, revision, total, strategy, settings, chosen.keep)
    return record


def _record(description: Description, best: Best) -> dict[str, Any]:
    """The same, with what was taught."""
    name, revision, row = description.source, description.revision, best.row
    own = ("method", "head", "seed", "settings", "train_examples", "epochs", "best_epoch")
    measured = ("held_out_accuracy", "test_examples", "accuracy", "macro_f1")
    about: dict[str, Any] = {"template": best.template.record(), "before": best.before}
    about["label_tokens"] = list(best.question.label_ids)
    about |= {field: row[field] for field in (*own, *measured)}
    before, kept = _chop_record(description, best), len(best.choice.keep)
    return add_entry(CLASSIFICATION, before, name, revision, kept, about)
