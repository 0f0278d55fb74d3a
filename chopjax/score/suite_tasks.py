"""What the suites' task files refer to with `!function`: kinds of task that the harness lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_metric

from chopjax.score.local_data import LocalTask

DOMAIN = "Answer:"  # the last line of the prompts of boolq and ARC


@register_metric(
    metric="acc_pmi_dc",
    higher_is_better=True,
    output_type="multiple_choice",
    aggregation="mean",
)
def acc_pmi_dc(items: Any) -> Any:
    """Named for the harness's registry; AnswerConditional computes the values."""
    return items


class AnswerConditional(LocalTask):
    """Multiple choice by domain-conditional PMI (arXiv 2104.08315, eq. 3): the choice that the
    question makes more likely than "Answer:" alone does, by log P(choice | prompt)
    - log P(choice | "Answer:")."""

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> list[Instance]:
        """The choices after the prompt, then the same choices after "Answer:"."""
        asked = super().construct_requests(doc, ctx, **kwargs)
        alone = super().construct_requests(doc, DOMAIN, **kwargs)
        for instance in alone:
            instance.idx += len(asked)
        return [*asked, *alone]

    def process_results(
        self, doc: dict[str, Any], results: Sequence[tuple[float, bool]]
    ) -> dict[str, Any]:
        choices = len(results) // 2
        metrics: dict[str, Any] = super().process_results(doc, results[:choices])
        logprobs = np.array([logprob for logprob, _ in results])
        best = int(np.argmax(logprobs[:choices] - logprobs[choices:]))
        return metrics | {"acc_pmi_dc": float(best == self.doc_to_target(doc))}


def first_200(docs: datasets.Dataset) -> datasets.Dataset:
    return docs.select(range(min(200, len(docs))))


def f1(items: Sequence[tuple[int, int]]) -> float:
    """Of class 1, from (right, said) pairs, as scikit-learn's f1_score."""
    agreed_D, wrong_D = f1_parts(items)
    total = float((agreed_D + wrong_D).sum())
    return float(agreed_D.sum()) / total if total else 0.0


def f1_parts(items: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """F1 is the sum of the first over the sum of both: twice the true positives, and what is
    falsely positive or negative. [D] each."""
    right_D, said_D = (np.array(column) == 1 for column in zip(*items, strict=True))
    return 2.0 * (right_D & said_D), 1.0 * (right_D ^ said_D)
