"""transformers without torch.

Wherever torch is installed transformers imports it, which takes longer and more memory than all
else that a tokenizer needs. It looks for it once, and remembers what it found. In the process of
`chopjax` itself it finds none, unless tasks are scored there: some of their metrics are models of
transformers.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

_alone = False


def in_program() -> None:
    """This process is for `chopjax` alone. Elsewhere a caller may want transformers' models."""
    global _alone
    _alone = True


def with_others() -> None:
    """Here others may want them, too; to be said before the first tokenizer is built."""
    global _alone
    _alone = False


def auto_tokenizer() -> Any:
    """transformers.AutoTokenizer."""
    if _alone:
        _look_for_torch_in_vain()
    from transformers import AutoTokenizer

    return AutoTokenizer


@functools.cache
def _look_for_torch_in_vain() -> None:
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from transformers.utils import is_torch_available

        is_torch_available()
    finally:
        sys.modules.pop("torch", None)  # whoever imports it gets it
