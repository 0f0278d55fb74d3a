"""The type that config.json states, in either spelling, read and written."""

from __future__ import annotations

import pytest
import transformers

from chopjax.checkpoint.dtypes import stated_dtype, tensor_dtypes, with_dtype
from chopjax.errors import UserError


@pytest.mark.parametrize(
    "said",
    [
        {"torch_dtype": "float16", "dtype": "bfloat16"},
        {"dtype": "bfloat16", "torch_dtype": "float16"},
        {"torch_dtype": "float16"},
        {"dtype": "float16"},
        {"dtype": None, "torch_dtype": "bfloat16"},
        {},
    ],
    ids=str,
)
def test_the_type_is_the_one_of_transformers(said: dict[str, str]) -> None:
    theirs = transformers.LlamaConfig.from_dict(dict(said)).dtype
    assert stated_dtype(said) == (None if theirs is None else str(theirs).removeprefix("torch."))


def test_both_spellings_follow_what_is_written() -> None:
    both = {"torch_dtype": "float16", "dtype": "bfloat16", "x": 1}
    assert with_dtype(both, "float32") == {"torch_dtype": "float32", "dtype": "float32", "x": 1}
    assert with_dtype({"dtype": None}, "float32") == {"dtype": "float32"}
    assert with_dtype({}, "float32") == {"torch_dtype": "float32"}
    assert tensor_dtypes(["a"], both, None) == {"a": "BF16"}  # after training


def test_a_type_that_is_none_and_a_record_that_lacks_a_tensor() -> None:
    with pytest.raises(UserError, match="float99"):
        tensor_dtypes(["a"], {"dtype": "float99"}, None)
    with pytest.raises(UserError, match="lacks"):
        tensor_dtypes(["a", "b"], {}, {"a": "F32"})
