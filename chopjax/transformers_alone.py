"""transformers without torch.

Wherever torch is installed transformers imports it, which takes longer and more memory than all
else that a tokenizer needs. It looks for it once, and remembers what it found: in the process of
`chopjax` itself, where nobody asks it for a model, it finds none.
"""

from __future__ import annotations

import sys
from typing import Any

_program = False


def in_program() -> None:
    """This process is for `chopjax` alone. Elsewhere a caller may want transformers' models."""
    global _program
    _program = True


def auto_tokenizer() -> Any:
    """transformers.AutoTokenizer."""
    if _program and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            from transformers.utils import is_torch_available

            is_torch_available()
        finally:
            del sys.modules["torch"]  # others that want it get it
    from transformers import AutoTokenizer

    return AutoTokenizer
