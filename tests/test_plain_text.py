"""Output on a terminal that has ASCII alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chopjax import plain_text


def test_signs_have_plain_forms_and_the_rest_a_question_mark() -> None:
    text = "0.5 ± 0.1 … a → b, 2 × 3 − 1, é"
    assert text.encode("ascii", plain_text.ERRORS) == b"0.5 +/- 0.1 ... a -> b, 2 x 3 - 1, ?"
    assert "ł ±".encode("latin-1", plain_text.ERRORS).decode("latin-1") == "? ±"


def test_decoding_is_not_its_business() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", plain_text.ERRORS)


def test_help_and_errors_in_the_c_locale() -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words, code in ((["train", "--help"], 0), (["train"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "chopjax", *words], env=environment, capture_output=True
        )
        assert done.returncode == code
        assert done.stdout.isascii()
        assert done.stderr.isascii()
    assert b"--workdir DIR ..." in done.stderr
