"""The command line as on a machine without torch: `python tests/without_torch.py VERB …`."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

_find = PathFinder.find_spec.__func__  # type: ignore[attr-defined]


def _find_all_but_torch(cls: type, name: str, *rest: object) -> object:
    return None if name.partition(".")[0] == "torch" else _find(cls, name, *rest)


PathFinder.find_spec = classmethod(_find_all_but_torch)  # type: ignore[assignment]

if __name__ == "__main__":
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        from chopjax import cli

        sys.exit(cli.main())
    sys.exit("torch can still be imported")
