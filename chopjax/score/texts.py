"""Perplexity of texts as one more task: of a suite (C4), or of the user's own.

A suite's task file says which text in its metadata, under `perplexity`: name, source (as `chopjax
prepare` takes it), local (the file of --data-dir), tokens and context_length.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.utils import hash_string

from chopjax.checkpoint.load import Loaded
from chopjax.data.sources import Source, find_sources
from chopjax.data.tokenizer import load_tokenizer
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.progress import progress, say
from chopjax.score.engine import Engine
from chopjax.score.journal import Journal
from chopjax.score.perplexity import Document, Texts, document_losses, summary

METRICS = (
    "nats_per_token",
    "perplexity",
    "loss_over_log_vocabulary",
    "bits_per_byte",
)
LONGEST = 120  # characters of a name; a file's name may have 255 bytes


@dataclasses.dataclass(frozen=True)
class Text:
    """What to read, and how much of it."""

    name: str
    sources: tuple[Source, ...]
    tokens: int | None = None  # the document with which so many are predicted is the last
    context_length: int | None = None  # window; the model's at most, and by default


def suite_texts(groups: Mapping[str, Any], data_dir: str | Path | None = None) -> list[Text]:
    """The texts of groups that load_tasks gave. Raises UserError where one cannot be had."""
    texts: dict[str, Text] = {}
    for group in groups.values():
        about = (group.metadata or {}).get("perplexity")
        if about:
            place = about["source"] if data_dir is None else str(Path(data_dir) / about["local"])
            text = Text(about["name"], _sources(place), about["tokens"], about["context_length"])
            texts[text.name] = text
    return list(texts.values())


def find_texts(
    tasks: Mapping[str, Any], places: Sequence[str], data_dir: str | Path | None = None
) -> list[Text]:
    """The texts of the suites in what load_tasks gave, and those that the user names, each under a
    name that no task, group or other text has. Raises UserError where one cannot be had."""
    texts = suite_texts(tasks["groups"], data_dir)
    taken = {*tasks["tasks"], *tasks["groups"], *(text.name for text in texts)}
    named = zip(places, own_names(places, taken), strict=True)
    return texts + [Text(name, _sources(place)) for place, name in named]


def own_names(places: Sequence[str], taken: Iterable[str]) -> list[str]:
    """For each place (a file, a folder, hf:NAME) the last part of its path, and as many before it
    as tell it from the others and from `taken`. Good as parts of file names."""
    parts = [_parts(place) for place in places]
    if twice := [place for n, place in enumerate(places) if parts[n] in parts[:n]]:
        raise UserError(f"--text {twice[0]}: the same text twice")
    counts = [1] * len(places)
    while True:
        names = [
            "_".join(part[-count:])[-LONGEST:] for part, count in zip(parts, counts, strict=True)
        ]
        # Some file systems take A and a for the same.
        used = collections.Counter(name.casefold() for name in (*names, *set(taken)))
        same = [n for n, name in enumerate(names) if used[name.casefold()] > 1]
        longer = [n for n in same if counts[n] < len(parts[n])]
        if not same:
            return names
        if not longer:
            raise UserError(
                f"--text {places[same[0]]}: its results would be named {names[same[0]]}, as those "
                "of another text or task are; rename the file"
            )
        for n in longer:
            counts[n] += 1


def _parts(place: str) -> tuple[str, ...]:
    """What a place's name can be made of, the last part last."""
    path = expanded(place)
    whole = os.path.abspath(path) if path.exists() else place
    parts = [re.sub(r"[^\w.+,@ -]+", "_", part) for part in whole.split("/")]
    return tuple(part for part in parts if part.strip(".")) or ("text",)


def _sources(place: str) -> tuple[Source, ...]:
    return tuple(find_sources([place]))


def measure(
    text: Text, loaded: Loaded, engine: Engine, journal: Journal | None, limit: int | float | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(What `chopjax perplexity` prints, a sample for each document as the harness has them)."""
    tokenizer = load_tokenizer(loaded.folder)
    length = min(text.context_length or engine.max_length, engine.max_length)
    if text.context_length and length < text.context_length:
        say(
            f"note: {text.name} is to be read in windows of {text.context_length} tokens; this "
            f"model reads {length}"
        )
    if limit is not None:
        # As the harness rounds a share of a task's documents.
        limit = math.ceil(sum(1 for _ in Texts(text.sources)) * limit) if limit < 1 else int(limit)
    texts = Texts(text.sources)
    with progress(f"perplexity of {text.name}", text.tokens, "tokens") as bar:

        def planned(tokens: int) -> None:
            expected = texts.expected(tokens) if limit is None else tokens
            bar.expect(min(text.tokens or math.inf, expected) if expected else text.tokens)

        documents = list(
            document_losses(
                engine,
                tokenizer,
                itertools.islice(texts, limit),
                length,
                most=text.tokens,
                journal=journal,
                planned=planned,
                advance=bar.advance,
            )
        )
    samples = [_sample(number, document) for number, document in enumerate(documents)]
    return summary(engine, tokenizer, documents, length), samples


def _sample(number: int, document: Document) -> dict[str, Any]:
    log_likelihood = -document.loss
    return {
        "doc_id": number,
        "doc": {"text": document.text},
        "target": document.text,
        "arguments": [(document.text,)],
        "resps": [[log_likelihood]],
        "filtered_resps": [log_likelihood],
        "filter": "none",
        "metrics": ["nats_per_token", "bits_per_byte"],
        "doc_hash": hash_string(document.text),
        "prompt_hash": hash_string(""),
        "target_hash": hash_string(document.text),
        "nats_per_token": (log_likelihood, document.tokens),
        "bits_per_byte": (log_likelihood, len(document.text.encode())),
    }


def add(
    results: dict[str, Any], text: Text, figures: Mapping[str, Any], samples: list[Any]
) -> None:
    """Put a text's figures where the harness has those of a task."""
    metrics: dict[str, Any] = {"alias": text.name, "sample_len": figures["documents"]}
    for metric in METRICS:
        metrics[f"{metric},none"] = figures[metric]
        error = figures.get(f"{metric}_stderr")
        metrics[f"{metric}_stderr,none"] = "N/A" if error is None else error
    results["results"][text.name] = metrics
    about = {key: figures[key] for key in ("tokens", "bytes", "context_length", "convention")}
    files = [file["name"] for source in text.sources for file in source.files]
    results["configs"][text.name] = {
        "task": text.name,
        "output_type": "loglikelihood_rolling",
        "metadata": {**about, "files": files},
    }
    results["versions"][text.name] = 1.0
    results["n-shot"][text.name] = 0
    results["higher_is_better"][text.name] = dict.fromkeys(METRICS, False)
    results["n-samples"][text.name] = {
        "original": figures["documents"],
        "effective": figures["documents"],
    }
    results["samples"][text.name] = samples
