"""What all cells of a grid share, and all that can be wrong with it, looked at before a weight
is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from chopjax.checkpoint.describe import Description, describe
from chopjax.classify.examples import Example, check_apart, fingerprint, read_examples
from chopjax.classify.learner import adapter_of
from chopjax.classify.parts import bucket_lengths, rounded_up
from chopjax.classify.prompts import Material, label_ids, make_material, not_longer
from chopjax.classify.settings import Cell, ClassifySettings, cells, check
from chopjax.classify.split import Split, draw
from chopjax.classify.templates import Template, read_template
from chopjax.classify.ways import VIRTUAL_TOKENS
from chopjax.data.tokenizer import Tokenizer, check_ids, load_tokenizer
from chopjax.errors import UserError
from chopjax.models import adapter_settings
from chopjax.models.compute import Compute
from chopjax.models.mesh import make_mesh
from chopjax.progress import progress, say

PARTS = ("train", "held_out", "test")


@dataclasses.dataclass(frozen=True)
class Task:
    """What all cells share. materials: a seed each."""

    settings: ClassifySettings
    description: Description
    template: Template
    label_ids: tuple[int, ...]
    materials: list[Material]
    tails: tuple[int, ...]  # that prompts are padded to, without what all of a seed share
    slots: int  # that this is padded to
    compute: Compute
    mesh: Mesh


def prepare(settings: ClassifySettings) -> tuple[Task, dict[str, Any], list[Cell]]:
    """The task, the conditions that its rows are measured under, and the cells of the grid."""
    check(settings)
    template = read_template(settings.template)
    description = describe(settings.model, settings.revision)
    config = description.config
    wanted = cells(settings, description)
    if "lora" in settings.methods:
        adapter = adapter_of("lora", settings.rank, settings.targets)
        adapter_settings.target_paths(config, adapter)
    tokenizer = load_tokenizer(description.folder)
    train_examples, test_examples = (
        _examples(names, settings, template, tokenizer) for names in (settings.train, settings.test)
    )
    check_apart(train_examples, test_examples)
    words = label_ids(tokenizer, template, template.query(train_examples[0].text))
    splits = [
        draw(train_examples, test_examples, template, settings.split, seed)
        for seed in range(settings.seeds)
    ]
    longest = config.max_positions - (VIRTUAL_TOKENS if "prefix" in settings.methods else 0)
    materials = _materials(tokenizer, template, train_examples, test_examples, splits, longest)
    check_ids(
        (ids for material in materials for ids in _ids(material)),
        config.vocab_size,
        lambda: tokenizer,
    )
    tails = [len(ids) - m.shared for m in materials for ids in _ids(m)]
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    task = Task(
        settings,
        description,
        template,
        words,
        materials,
        bucket_lengths(tails, longest),
        rounded_up(max(1, *(material.shared for material in materials))),
        Compute(dtype=dtype),
        make_mesh(devices=jax.local_devices()[:1]),
    )
    conditions = {
        "template": template.record(),
        "label_tokens": list(task.label_ids),
        "tokenizer": tokenizer.fingerprint,
        "train": fingerprint(train_examples),
        "test": fingerprint(test_examples),
        "max_tokens": settings.max_tokens,
        **dataclasses.asdict(settings.split),
        **dataclasses.asdict(settings.training),
        "dtype": dtype,
    }
    return task, conditions, wanted


def _examples(
    names: Sequence[str], settings: ClassifySettings, template: Template, tokenizer: Tokenizer
) -> list[Example]:
    """Of these files, without those that are longer than asked for, whose number is said."""
    found = read_examples(names, template, settings.field, settings.label_field)
    most, where = settings.max_tokens, ", ".join(names)
    if most is None:
        return found
    kept = not_longer(tokenizer, found, most)
    say(
        f"note: {where}: {len(found) - len(kept):,} of {len(found):,} examples have more than "
        f"{most} tokens and are left out (--max-tokens)"
    )
    if not kept:
        raise UserError(f"--max-tokens {most}: none of the {len(found):,} examples is so short")
    return kept


def _materials(
    tokenizer: Tokenizer,
    template: Template,
    train_examples: Sequence[Example],
    test_examples: Sequence[Example],
    splits: Sequence[Split],
    longest: int,
) -> list[Material]:
    total = sum(len(s.train) + len(s.held_out) + len(s.test) for s in splits)
    with progress("tokenize prompts", total, "prompts") as bar:
        return [
            make_material(
                tokenizer, template, train_examples, test_examples, split, longest, bar.advance
            )
            for split in splits
        ]


def _ids(material: Material) -> list[np.ndarray]:
    return [ids for name in PARTS for ids in getattr(material, name).ids]
