"""One at a time, told by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from chopjax.disk.lock import locked
from chopjax.errors import UserError


def test_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with (
        locked(file, "first"),
        pytest.raises(UserError, match="busy with it"),
        locked(file, "busy with it"),
    ):
        raise AssertionError("entered")
    with locked(file, "free again"):
        pass
