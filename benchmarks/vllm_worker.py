"""The process of vllm_loads.py that has vLLM, and not chopjax.

    PYTHON vllm_worker.py FOLDER DTYPE TOKENS NEW PLAIN

It prints a line of JSON: "tokens", the prompt TOKENS (a JSON list of ids) and NEW greedy ones
behind it; "logprobs", of every token but the first {id: log-probability} of it and of the 20
likeliest; and "kernels", the classes of the quantized matrices' kernels. Where vLLM refuses the
folder, "refused" says in which of its files and functions, and "why" what it says.

PLAIN is 1 to let torch compute the products with quantized weights, from the parameters that
vLLM's own loader has filled, in place of vLLM's kernels: it has none of 8 bits for a processor, and
the one of 4 bits knows no float32 (0.32.0). Else 0.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # what is refused, is refused in this process
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    folder, dtype, tokens, new, plain = sys.argv[1:]
    out, sys.stdout = sys.stdout, sys.stderr
    os.environ.update(SETTINGS)
    import vllm

    chosen = watch(plain == "1")
    settings: dict[str, Any] = {"enforce_eager": True, "max_logprobs": 20, "max_model_len": 512}
    try:
        model = vllm.LLM(folder, dtype=dtype, skip_tokenizer_init=True, **settings)
        sampling = vllm.SamplingParams(
            temperature=0,
            max_tokens=int(new),
            ignore_eos=True,
            detokenize=False,
            logprobs=20,
            prompt_logprobs=20,
        )
        [read] = model.generate([{"prompt_token_ids": json.loads(tokens)}], sampling)
        said = [*read.prompt_logprobs[1:], *read.outputs[0].logprobs]
        answer = {
            "tokens": [*read.prompt_token_ids, *read.outputs[0].token_ids],
            "logprobs": [{id: one.logprob for id, one in place.items()} for place in said],
            "kernels": sorted(chosen),
        }
    except (ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = place.filename.rpartition("/vllm/")[2]
        answer = {"refused": f"{where}, {place.name}", "why": str(error).strip()}
    print(json.dumps(answer | {"version": vllm.__version__}), file=out, flush=True)


def watch(plain: bool) -> set[str]:
    """Of which classes the linear kernels are that are made from now on. plain: two more of them,
    which are preferred."""
    import torch
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import (
        FP8ScaledMMLinearKernel,
        ScaledMMLinearKernel,
    )
    from vllm.platforms import current_platform

    chosen: set[str] = set()
    for base in (MPLinearKernel, ScaledMMLinearKernel):

        def make(self, *args, _of=base.__init__, **named):  # type: ignore[no-untyped-def]
            chosen.add(type(self).__name__)
            _of(self, *args, **named)

        base.__init__ = make

    class TorchIntegers(MPLinearKernel):
        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, None]:
            return True, None

        def process_weights_after_loading(self, layer: Any) -> None:
            words, scales, _ = self._get_weight_params(layer)
            bits = self.config.weight_type.size_bits
            shifts = torch.arange(0, 32, bits, dtype=torch.int32)
            codes = (words.data[..., None] >> shifts) & (2**bits - 1)
            codes = codes.reshape(*scales.shape, -1) - 2 ** (bits - 1)
            wide = codes * scales.data[..., None].float()
            layer.plain_OI = wide.flatten(1).to(self.config.act_type)

        def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
            return torch.nn.functional.linear(x, layer.plain_OI, bias)

    class TorchFloats(FP8ScaledMMLinearKernel):
        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, None]:
            return True, None

        can_implement = TorchIntegers.can_implement

        def process_weights_after_loading(self, layer: Any) -> None:
            wide = layer.weight.data.t().float() * layer.weight_scale.data  # it lies as [I, O]
            layer.plain_OI = wide.to(self.config.out_dtype)

        apply_weights = TorchIntegers.apply_weights

        def apply_scaled_mm(self, **named: Any) -> Any:
            raise NotImplementedError

    if plain:
        linear._POSSIBLE_KERNELS[current_platform._enum].insert(0, TorchIntegers)
        linear._POSSIBLE_WFP8A16_KERNELS[current_platform._enum].insert(0, TorchFloats)
    return chosen


if __name__ == "__main__":
    main()
