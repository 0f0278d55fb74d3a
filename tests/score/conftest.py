"""lm-evaluation-harness's index of its own tasks, made once a process."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex

from chopjax.score.tasks import HARNESS


@pytest.fixture(autouse=True, scope="session")
def one_index() -> Iterator[None]:
    """Its 14,000 files take 8 s to read, and every wrong name asks for all of them."""
    build = TaskIndex.build
    once = functools.cache(lambda root: build([root]))

    def merged(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
        index: dict[str, Any] = {}
        for root in paths:
            index |= once(root) if root.is_relative_to(HARNESS) else build([root], **options)
        return index

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(merged))
        yield
