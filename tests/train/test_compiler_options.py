"""Options for XLA as a recipe spells them. What is refused: test_config_file.py, test_loop.py."""

from __future__ import annotations

from chopjax.train.compiler_options import read_options


def test_options_have_the_type_of_their_text() -> None:
    assert read_options("") == {}
    found = read_options("xla_a=true, xla_b=false,xla_c=12,xla_d=0.5,xla_e=x=y")
    assert found == {"xla_a": True, "xla_b": False, "xla_c": 12, "xla_d": 0.5, "xla_e": "x=y"}
    assert [type(value) for value in found.values()] == [bool, bool, int, float, str]
