"""lm-evaluation-harness's index of its own tasks, made once for all of xdist's workers."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex

from chopjax.score.tasks import HARNESS


@pytest.fixture(autouse=True, scope="session")
def one_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Its 14,000 files take 8 s to read, and every wrong name asks for all of them."""
    build = TaskIndex.build
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of this run and of all workers

    @functools.cache
    def once(root: Path) -> dict[str, Any]:
        made = folder / "-".join(["index", *root.relative_to(HARNESS).parts])
        if made.exists():
            found: dict[str, Any] = pickle.loads(made.read_bytes())
            return found
        index = build([root])
        own = made.with_name(f"{made.name}.{os.getpid()}")
        own.write_bytes(pickle.dumps(index))
        own.replace(made)
        return index

    def merged(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
        index: dict[str, Any] = {}
        for root in paths:
            index |= once(root) if root.is_relative_to(HARNESS) else build([root], **options)
        return index

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(merged))
        yield
