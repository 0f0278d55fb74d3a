"""A teacher is asked, once, about every token of a store (`chopjax prepare --teacher`): for who
cannot hold teacher and student at the same time. data/top_k.py says what is kept of its answers.

Axes: B batch, T time, K likeliest tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.identity import model_files
from chopjax.checkpoint.load import load
from chopjax.compilation import compiled
from chopjax.data.batches import full_rows, rows_in
from chopjax.data.store import TokenStore, check_fits, open_stores
from chopjax.data.tokenizer import load_tokenizer
from chopjax.data.top_k import LOG_PROBS, TopK
from chopjax.data.top_k_writer import Answers, windows_of, write_top_k
from chopjax.disk.files import expanded
from chopjax.disk.hashes import file_hashes
from chopjax.errors import UserError, listing
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.head import head_of
from chopjax.models.mesh import batch_sharding, batch_shards, make_mesh, shardings
from chopjax.models.parameters import Params
from chopjax.models.top_k import top_k as likeliest
from chopjax.progress import progress
from chopjax.train.feed import prefetch

BATCH_TOKENS = 8192  # of a device's part of a forward pass


@dataclasses.dataclass(frozen=True)
class Question:
    """What a teacher is asked.

    top_k: likeliest next tokens that are kept. sequence_length, mask_documents: of training, whose
    windows the teacher reads. batch_size: windows of a forward pass, about BATCH_TOKENS a device by
    default. dtype: of the forward pass; auto is float32 on CPU and bfloat16 elsewhere.
    """

    sequence_length: int
    top_k: int = 64
    mask_documents: bool = False
    batch_size: int | None = None
    dtype: str = "auto"


def ask_teacher(
    out: str | os.PathLike[str],
    teacher: str,
    question: Question,
    revision: str | None = None,
    overwrite: bool = False,
) -> TopK:
    """Write what a teacher says of the tokens of `prepare`'s folder OUT beside them, of those of
    OUT/train where some are held out. Finished work is kept.

    Raises UserError where it has another tokenizer than the tokens, and where the answers of
    another teacher are in the way.
    """
    folder = _folder(out)
    stores = open_stores(folder)
    store = stores.get("train") or stores[""]
    description = check_question(teacher, question, revision, store.tokenizer_fingerprint)
    check_fits(store, None, description.config.vocab_size)
    dtype = question.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    windows = windows_of(
        store,
        rows_in(store, question.sequence_length),
        question.top_k,
        question.sequence_length,
        question.mask_documents,
        description.config.vocab_size,
    )
    record = {
        "name": description.name,
        "revision": description.revision,
        "weights": _weights(description),
        "dtype": dtype,
    }

    def begin() -> Answers:
        return _loaded(description, store, question, dtype)

    return write_top_k(folder, store, windows, record, begin, overwrite)


def _folder(out: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(out):
        raise UserError(f"{out}: a teacher writes beside a local store; copy it there afterwards")
    return Path(os.path.abspath(expanded(out)))


def check_question(
    teacher: str, question: Question, revision: str | None, tokenizer: str
) -> Description:
    """Look at the teacher. Raises UserError where it cannot be asked this about tokens of a
    tokenizer, given by its fingerprint."""
    description = describe(teacher, revision)
    config, problems = description.config, []
    if not 1 <= question.top_k < config.vocab_size:
        problems.append(
            f"--top-k {question.top_k}: from 1 to {config.vocab_size - 1}, less than its vocabulary"
        )
    if not 1 <= question.sequence_length <= config.max_positions:
        problems.append(
            f"--sequence-length {question.sequence_length}: from 1 to {config.max_positions}, its "
            "positions"
        )
    if question.batch_size is not None and question.batch_size < 1:
        problems.append(f"--batch-size {question.batch_size}: at least 1")
    if question.dtype not in ("auto", "float32", "bfloat16"):
        problems.append(f"--dtype {question.dtype}: float32, bfloat16 or auto")
    own = load_tokenizer(description.folder).fingerprint
    if own != tokenizer:
        problems.append(
            f"it has another tokenizer than the tokens (fingerprint {own[:12]}, theirs is "
            f"{tokenizer[:12]})"
        )
    if problems:
        raise UserError(f"{description.name} cannot be asked this:\n{listing(problems)}")
    return description


def _weights(description: Description) -> str:
    """What tells a teacher apart: the commit of a hub model, or a sha256 of all its files."""
    if description.revision:
        return description.revision
    files = model_files(description)
    hashes = file_hashes(files.values())
    said = json.dumps(sorted((name, hashes[path]) for name, path in files.items()))
    return hashlib.sha256(said.encode()).hexdigest()


def _loaded(description: Description, store: TokenStore, question: Question, dtype: str) -> Answers:
    """Load the teacher over all devices. Each has its rows of a batch, and its part of the
    parameters where they divide."""
    config, count = description.config, len(jax.devices())
    mesh = make_mesh(fsdp=count if config.embed_dim % count == 0 else 1)
    with progress(f"load the teacher, {description.name}"):
        params = load(description, shardings=shardings(config, mesh), dtype=dtype).params
    per_device = max(1, BATCH_TOKENS // question.sequence_length)
    batch_size = question.batch_size or per_device * count
    batch_size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
    asked = functools.partial(_likeliest, config, Compute(dtype=dtype), question)
    batch = _batch(store, question, range(1), batch_size, mesh)
    with jax.set_mesh(mesh), progress("compile the forward pass"):
        program = compiled(jax.jit(asked).lower(params, batch))

    def answers(rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]

        def make(index: int) -> Any:
            return _batch(store, question, parts[index], batch_size, mesh)

        with contextlib.closing(prefetch(make, range(len(parts)))) as batches:
            waiting: Any = None  # the device works while the batch before is written
            for part, batch in zip(parts, batches, strict=True):
                now = len(part), program(params, batch)
                if waiting:
                    yield _fetched(*waiting)
                waiting = now
            yield _fetched(*waiting)

    return answers


def _batch(
    store: TokenStore, question: Question, rows: range, batch_size: int, mesh: Mesh
) -> dict[str, jax.Array]:
    """Some windows on the mesh; the last of them fills the batch up."""
    row_N = np.minimum(np.arange(batch_size) + rows.start, rows.stop - 1)
    found = full_rows(store, row_N, question.sequence_length, question.mask_documents)
    names = ("tokens", "segments", "positions") if question.mask_documents else ("tokens",)
    placed: dict[str, jax.Array] = jax.device_put(
        {name: found[name] for name in names}, batch_sharding(mesh)
    )
    return placed


def _likeliest(
    config: ModelConfig,
    compute: Compute,
    question: Question,
    params: Params,
    batch: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Ids [B, T, K] int32 and log-probabilities [B, T, K] in the type of the store."""
    hidden_BTE = decoder.hidden_states(
        params, config, compute, batch["tokens"], batch.get("segments"), batch.get("positions")
    )
    ids_BTK, log_probs_BTK = likeliest(hidden_BTE, head_of(params, config), question.top_k)
    least = float(np.finfo(LOG_PROBS).min)
    # What is no number stays none, and is found by whoever writes.
    return ids_BTK, jnp.clip(log_probs_BTK, least, 0).astype(LOG_PROBS.name)


def _fetched(rows: int, answer: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    ids, log_probs = jax.device_get(answer)
    return ids[:rows], log_probs[:rows]
