"""The lm-evaluation-harness model `chopjax`: `chopjax lm-eval --model chopjax …`.

Tasks, prompts, metrics and results are the harness's own; only the requests are answered here,
with the numbers of its `hf` backend in float32. No torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Before the name is registered: the registry takes itself for complete as soon as it has a name.
import lm_eval.models  # noqa: F401
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from chopjax.checkpoint.load import Loaded
from chopjax.data.tokenizer import build
from chopjax.errors import UserError, did_you_mean
from chopjax.models import parameters
from chopjax.progress import progress, say
from chopjax.score.chat import Template
from chopjax.score.decoding import GENERATION_CONFIG, read_generation_config
from chopjax.score.encoding import Encoder, Ids, check_pairs
from chopjax.score.ending import shortest
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, GenerationSettings, generate, read_settings
from chopjax.score.journal import Journal, pair_key, prompt_key
from chopjax.score.model import open_engine
from chopjax.score.next_token import Choice


@register_model("chopjax")
class ChopjaxLM(TemplateLM):
    """Answers requests of the harness in JAX.

    pretrained: whatever chopjax loads: a Hugging Face folder, a hub id, an import, a training run.
    dtype: "auto" is float32 on CPU and bfloat16 elsewhere; log-probabilities are float32 always.
    max_length: tokens that the network may read; the context length by default.
    add_bos_token, prefix_token_id: as of the hf backend.
    batch_size: rows of max_length tokens that a forward pass may hold. "auto" and 1, which the
        harness sends when nothing was said, fit it to the device. No result depends on it.
    """

    def __init__(
        self,
        pretrained: str = "",
        revision: str | None = None,
        dtype: str = "auto",
        max_length: int | str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: object,
    ):
        del max_batch_size, device  # the harness sends them to every model
        for name in others:
            near = did_you_mean(name, inspect.signature(ChopjaxLM).parameters)
            raise UserError(f"--model_args {name}: the model `chopjax` has no such argument{near}")
        if not pretrained:
            raise UserError("--model_args: pretrained=MODEL is missing, a folder or a hub id")
        rows = None if batch_size in (None, "auto", 1, "1") else int(str(batch_size))
        length = None if max_length is None else int(max_length)
        loaded, engine = open_engine(str(pretrained), revision, dtype, length, rows)
        self._start(loaded, engine, add_bos_token, prefix_token_id, None)

    @classmethod
    def over(
        cls,
        loaded: Loaded,
        engine: Engine,
        add_bos_token: bool | None = None,
        journal: Journal | None = None,
    ) -> ChopjaxLM:
        """The same over an engine that exists. journal: remembers answers through a kill."""
        made = cls.__new__(cls)
        made._start(loaded, engine, add_bos_token, None, journal)
        return made

    def _start(
        self,
        loaded: Loaded,
        engine: Engine,
        add_bos_token: bool | None,
        prefix_token_id: int | None,
        journal: Journal | None,
    ) -> None:
        super().__init__()
        options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        self.tokenizer = build(loaded.folder, loaded.name, **options)
        self.loaded, self.engine, self.journal = loaded, engine, journal
        if prefix_token_id is None:
            prefix_token_id = self.tokenizer.bos_token_id
        if prefix_token_id is None:
            prefix_token_id = self.tokenizer.eos_token_id
        if prefix_token_id is None:
            raise UserError(
                f"{loaded.name}: the tokenizer has neither a BOS nor an EOS token to stand for an "
                "empty context; name one with prefix_token_id"
            )
        self._prefix_token_id = int(prefix_token_id)
        self.template = Template(self.tokenizer, loaded.name)
        self._generation_config = read_generation_config(loaded.folder)
        self.encoder = Encoder(self.tokenizer, add_bos_token, self._prefix_token_id)

    @property
    def eot_token_id(self) -> int | None:
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        return self._prefix_token_id

    @property
    def max_length(self) -> int:
        return self.engine.max_length

    @property
    def tokenizer_name(self) -> str:
        return self.loaded.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        tokens: list[int] = self.encoder.encode([string], add_special_tokens)[0].tolist()
        return tokens

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy) of each (context, continuation)."""
        texts = [request.args for request in requests]
        pairs = self.encoder.pairs(texts)
        long = check_pairs(pairs, [_name(request) for request in requests], self.max_length)
        _say_truncated(len(long), len(requests), self.max_length)
        documents = [(request.task_name, request.doc_id) for request in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for index, answer in self._answer(pairs, documents, disable_tqdm):
            answers[index] = answer
            self.cache_hook.add_partial("loglikelihood", texts[index], answer)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self.engine.loglikelihood([(context, after) for _, context, after in requests])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text after the prefix token, window by window, each token
        predicted once, as the hf backend cuts the windows."""
        texts = [request.args[0] for request in requests]
        pairs: list[tuple[Ids, Ids]] = []
        owners = []
        for owner, ids in enumerate(self.encoder.encode(texts)):
            windows = get_rolling_token_windows(
                ids.tolist(), self.prefix_token_id, self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((np.array(context, np.int32), np.array(continuation, np.int32)))
                owners.append(owner)
        documents = [(requests[owner].task_name, requests[owner].doc_id) for owner in owners]
        totals = [0.0] * len(requests)
        for index, (total, _) in self._answer(pairs, documents, disable_tqdm):
            totals[owners[index]] += total
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each context, up to its stop strings."""
        contexts = [request.args[0] for request in requests]
        settings = [
            read_settings(request.args[1], _name(request), self._generation_config)
            for request in requests
        ]
        encoded = self.encoder.encode(contexts)
        prompts, cut = [], 0
        for ids, setting, request in zip(encoded, settings, requests, strict=True):
            room = self.max_length - setting.most
            if room < 1:
                raise UserError(
                    f"{_name(request)}: {setting.most} tokens are to be generated, and the "
                    f"context length is {self.max_length}"
                )
            if not len(ids):
                raise UserError(f"{_name(request)}: the context has no tokens")
            prompts.append(ids[-room:])
            if len(prompts[-1]) + setting.length > self.max_length:
                raise UserError(
                    f"{_name(request)}: {GENERATION_CONFIG} says max_new_tokens "
                    f"{setting.length}, which takes precedence over the task's {setting.most} and "
                    f"does not fit behind {len(prompts[-1])} tokens into the context length "
                    f"{self.max_length}; take it out of the file"
                )
            cut += len(ids) > room
        _say_truncated(cut, len(prompts), self.max_length)
        keys = [prompt_key(p, s.as_json()) for p, s in zip(prompts, settings, strict=True)]
        answers = self.journal.lookup(keys) if self.journal else {}
        todo = [index for index in range(len(requests)) if index not in answers]
        with progress("generate", len(requests), "docs", len(answers)) as bar:
            for setting in dict.fromkeys(settings[index] for index in todo):
                group = [index for index in todo if settings[index] == setting]
                for place, text in self._generate([prompts[i] for i in group], setting):
                    answers[group[place]] = text
                    if self.journal:
                        self.journal.add(keys[group[place]], text)
                    bar.advance()
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, answers[index])
        return [answers[index] for index in range(len(requests))]

    def _generate(
        self, prompts: Sequence[Ids], setting: GenerationSettings
    ) -> Iterator[tuple[int, str]]:
        eos = () if self.eot_token_id is None else (self.eot_token_id,)
        stops = [*setting.until, *(self.tokenizer.decode([token]) for token in eos)]

        def has_stop(ids: Sequence[int]) -> bool:
            text = self.tokenizer.decode(ids)
            return any(stop in text for stop in setting.until)

        def ends(prompt: int, ids: list[int]) -> int | None:
            return shortest(ids, has_stop)

        # The tokenizer's token ends a text, too: the harness has its spelling among the stops.
        eos_ids = frozenset((*setting.rules.eos_token_id, *eos))
        asked = Asked(setting.length, eos_ids, Choice(setting.rules))
        for place, ids in generate(self.engine, prompts, asked, ends):
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            yield place, postprocess_generated_text(text, stops, None)

    def _answer(
        self,
        pairs: Sequence[tuple[Ids, Ids]],
        documents: Sequence[tuple[Any, Any]],
        quiet: bool,
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(request, answer) as they come: first those that the journal knows, then computed."""
        left: dict[tuple[Any, Any], int] = {}
        for document in documents:
            left[document] = left.get(document, 0) + 1
        keys = [pair_key(pair) for pair in pairs] if self.journal else []
        known = self.journal.lookup(keys) if self.journal else {}
        for index, (total, greedy) in known.items():
            left[documents[index]] -= 1
            yield index, (total, greedy)
        todo = [index for index in range(len(pairs)) if index not in known]
        if not todo:
            return
        done = sum(count == 0 for count in left.values())
        plan = self.engine.plan([pairs[index] for index in todo])
        if not quiet:
            remembered = f" ({len(known)} known from the run before)" if known else ""
            say(
                f"score {len(todo)} requests{remembered}: {len(plan.paths)} distinct, "
                f"{plan.slots:,} tokens; batches: {len(plan.batches)}, shapes: {len(plan.shapes)}"
            )
        with progress("score", len(left), "docs", done) as bar:
            for score in self.engine.scores(plan):
                index = todo[score.request]
                if self.journal:
                    self.journal.add(keys[index], score.total)
                left[documents[index]] -= 1
                if not left[documents[index]]:
                    bar.advance()
                yield index, score.total

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as one text, by the tokenizer's own template or the one that was chosen."""
        return self.template.apply(chat_history, add_generation_prompt)

    def get_model_info(self) -> Mapping[str, Any]:
        """For the results file; the fields of the hf backend."""
        return {
            "model_num_parameters": parameters.count(self.engine.config),
            "model_dtype": self.engine.compute.dtype,
            "model_revision": self.loaded.revision or "main",
            "model_sha": self.loaded.revision or "",
        }


def _name(request: Instance) -> str:
    """A request, for error messages."""
    return f"{request.task_name}, document {request.doc_id}, request {request.idx}"


def _say_truncated(count: int, total: int, max_length: int) -> None:
    if count:
        say(
            f"note: {count} of {total} requests are longer than the context length {max_length}; "
            "they lose tokens on the left"
        )
