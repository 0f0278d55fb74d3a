"""Perplexity of texts as one more task: of a suite (C4), or of the user's own.

A suite's task file says which text in its metadata, under `perplexity`: name, source (as `chopjax
prepare` takes it), local (the file of --data-dir), tokens and context_length.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.utils import hash_string

from chopjax.checkpoint.load import Loaded
from chopjax.data.sources import Source, find_sources
from chopjax.data.tokenizer import load_tokenizer
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


@dataclasses.dataclass(frozen=True)
class Text:
    """What to read, and how much of it."""

    name: str
    sources: tuple[Source, ...]
    tokens: int | None = None  # the document with which so many are predicted is the last
    context_length: int | None = None  # window; the model's at most, and by default


def suite_texts(groups: Mapping[str, Any], data_dir: str | Path | None = None) -> list[Text]:
    """The texts of groups that load_tasks gave. Raises UserError where one cannot be had."""
    found: dict[str, Text] = {}
    for group in groups.values():
        about = (group.metadata or {}).get("perplexity")
        if about:
            place = about["source"] if data_dir is None else str(Path(data_dir) / about["local"])
            text = Text(about["name"], _sources(place), about["tokens"], about["context_length"])
            found[text.name] = text
    return list(found.values())


def own_text(place: str) -> Text:
    """A text that the user names: a file, a folder, hf:NAME."""
    return Text(Path(place).name if "://" not in place else place, _sources(place))


def _sources(place: str) -> tuple[Source, ...]:
    return tuple(find_sources([place]))


def measure(
    text: Text, loaded: Loaded, engine: Engine, journal: Journal | None, limit: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(What `chopjax perplexity` prints, a sample for each document as the harness has them)."""
    tokenizer = load_tokenizer(loaded.folder)
    length = min(text.context_length or engine.max_length, engine.max_length)
    if text.context_length and length < text.context_length:
        say(
            f"note: {text.name} is to be read in windows of {text.context_length} tokens; this "
            f"model reads {length}"
        )
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


def add(results: dict[str, Any], text: Text, found: Mapping[str, Any], samples: list[Any]) -> None:
    """Put a text's figures where the harness has those of a task."""
    metrics: dict[str, Any] = {"alias": text.name, "sample_len": found["documents"]}
    for metric in METRICS:
        metrics[f"{metric},none"] = found[metric]
        error = found.get(f"{metric}_stderr")
        metrics[f"{metric}_stderr,none"] = "N/A" if error is None else error
    results["results"][text.name] = metrics
    about = {key: found[key] for key in ("tokens", "bytes", "context_length", "convention")}
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
        "original": found["documents"],
        "effective": found["documents"],
    }
    results["samples"][text.name] = samples
