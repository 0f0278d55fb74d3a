"""Score a model on tasks of lm-evaluation-harness, from names to files."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from chopjax.checkpoint.identity import model_hashes
from chopjax.checkpoint.load import Loaded
from chopjax.checkpoint.size import size_of
from chopjax.checkpoint.source import Checkpoint
from chopjax.data.chat_template import choose_template
from chopjax.score.engine import Engine

# The harness bootstraps standard errors in forked processes; forking under JAX's threads can hang.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

import lm_eval.evaluator
import numpy as np

from chopjax.errors import UserError
from chopjax.models.quantized import kind_of
from chopjax.progress import progress, say
from chopjax.score import results as reports
from chopjax.score.chat import PLAIN, Chat, Template
from chopjax.score.folders import model_folder
from chopjax.score.harness import ChopjaxLM
from chopjax.score.journal import Journal
from chopjax.score.tasks import FEWSHOT_SEED, Tasks
from chopjax.score.texts import Text, add, measure

RANDOM_SEED, NUMPY_SEED = 0, 1234  # the harness's defaults


def evaluate(
    loaded: Loaded,
    engine: Engine,
    tasks: Tasks,
    output: Path | None = None,
    limit: int | float | None = None,
    add_bos_token: bool | None = None,
    log_samples: bool = False,
    texts: Sequence[Text] = (),
    keep_journal: bool = False,
    chat: Chat = PLAIN,
) -> dict[str, Any]:
    """Results in the harness's format, samples included; written to `output` if that is given.

    tasks: from load_tasks. texts: whose perplexity is measured as well. limit: documents of each
    task and text at most; below 1, a share of them. With `output`, answers are kept as they come:
    the same call after a kill goes on where that one stopped. keep_journal: they stay there, so
    that a later call with further tasks computes only what is missing. chat: what stands around
    prompts.
    """
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"--limit {limit}: at least 1 is needed, or a share between 0 and 1")
    flags = chat.as_flags()
    tracker = reports.start_tracker()
    # A task may draw its examples at random: as in the harness, from fixed seeds.
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    lm = ChopjaxLM.over(loaded, engine, add_bos_token)
    template = choose_template(lm.tokenizer, chat.template, loaded.name, "--apply-chat-template")
    lm.template = Template(lm.tokenizer, loaded.name, template)
    folder = model_folder(output, loaded.name) if output else None
    if folder:
        lm.journal = Journal(folder, identity(loaded, engine))
    # The harness prints while it bootstraps; standard output is for results.
    with progress("tasks"), contextlib.redirect_stdout(sys.stderr):
        results: dict[str, Any] = lm_eval.evaluator.evaluate(
            lm,
            dict(tasks),
            limit=limit,
            log_samples=True,
            **flags,
        )
    for text in texts:
        measured, samples = measure(text, loaded, engine, lm.journal, limit)
        add(results, text, measured, samples)
    settings = {
        "batch_size": "fitted",
        "device": jax.devices()[0].platform,
        "limit": limit,
        "bootstrap_iters": 100_000,
        "gen_kwargs": None,
        "random_seed": RANDOM_SEED,
        "numpy_seed": NUMPY_SEED,
        "torch_seed": None,
        "fewshot_seed": FEWSHOT_SEED,
    }
    prompts = flags["system_instruction"], template, flags["fewshot_as_multiturn"]
    reports.complete(results, lm, settings, prompts, tracker)
    reports.add_f1_errors(results)
    reports.add_means(results, tasks["groups"])
    if folder and lm.journal:
        if isinstance(loaded.weights, Checkpoint):
            results["model_size"] = size_of(loaded.weights)._asdict()
        for path in reports.write_results(results, folder, log_samples):
            say(f"wrote {path}")
        if not keep_journal:
            lm.journal.remove()
    return results


SOFTWARE = ("chopjax", "jax", "tokenizers")  # computes logits, and turns ids into text


def identity(loaded: Loaded, engine: Engine) -> Mapping[str, Any]:
    """By content: the weights, config.json, generation_config.json and the tokenizer's files.

    Tasks, prompts, chat template and special tokens have their say in the ids of a request, which
    an answer is found by.
    """
    kind = kind_of(engine.params)
    return {
        "files": {name: digest[:32] for name, digest in model_hashes(loaded).items()},
        **({"weights": kind} if kind else {}),  # journals of other runs know no such word
        "dtype": engine.compute.dtype,
        "max_length": engine.max_length,
        "platform": jax.default_backend(),
        "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
    }
