"""Makes `lm_eval --model chopjax` work in every Python that has chopjax installed.

lm-evaluation-harness finds models of other packages by the entry point `lm_eval.models` from the
release after 0.4.13 on, and pyproject.toml has one. 0.4.13 has no way to be told: its registry
knows what `import lm_eval.models` put in. So chopjax_lm_eval.pth imports this module when Python
starts, and this module waits for that import to add one name to the registry. Nothing else of
chopjax is imported before the name is used, and no module that makes Python start later.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

AWAITED = "lm_eval.models"


class _Waiting:
    """Finds nothing itself; adds to what the next finder makes of one module."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != AWAITED:
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)  # type: ignore[assignment]
        return spec


class _Registering:
    """Runs the module, then registers the model."""

    def __init__(self, usual: Any):
        self._usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._usual.exec_module(module)
        from lm_eval.api.registry import model_registry

        if "chopjax" not in model_registry:
            model_registry.register("chopjax", target="chopjax.score.harness:ChopjaxLM")


def wait() -> None:
    """Called once, when Python starts."""
    if AWAITED not in sys.modules:
        sys.meta_path.insert(0, _Waiting())


wait()
