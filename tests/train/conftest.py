"""Compiling takes longer than running here, so compile little and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(compilation_cache: str) -> Iterator[None]:
    wanted = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": compilation_cache,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: jax.config.values[name] for name in wanted}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))  # for processes that tests start
        yield
    for name, value in before.items():
        jax.config.update(name, value)
