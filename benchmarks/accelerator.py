"""Everything that wants an accelerator, in at most nine minutes on one GPU or TPU host.

    python benchmarks/accelerator.py [--out accelerator] [--minutes 9] [--only PART ...]
        [--data DIR --tokenizer DIR] [--tiny]

A bare machine needs chopjax and a few wheels; what is missing is named and left out:

    pip install ".[gpu]" torch peft bitsandbytes        # NVIDIA; the peers are torch, peft and
                                                        # bitsandbytes, the rest comes with chopjax
    pip install ".[tpu]"                                # TPU; nobody's peer runs there

Parts, in this order:

    train     continued pretraining of Llama-2-7B's half (16 of 32 layers, random weights), all in
              bfloat16, AdamW's moments too: rows of 2048 and 4096 tokens, with the device's own
              attention and with xla's, beside transformers' LlamaForCausalLM with sdpa attention
              through torch.compile
    score     HellaSwag and 5-shot MMLU with a 1B shape in bfloat16 beside lm-evaluation-harness's
              hf backend, whose log-softmax is in bfloat16, too (ours in float32). --data and
              --tokenizer as for benchmarks/score.py; without them documents and words are made up,
              of the real tasks' lengths, and the output says so
    adapters  LoRA on that half in bfloat16, NF4 and int8, beside peft's, there on bfloat16 and on
              bitsandbytes' NF4; adapters are float32 and products bfloat16 on both sides
    latency   prefill and decode of Llama-2-7B with all layers and with half of them
    parity    the device's own attention beside xla's: windows, documents in a row, grouped heads,
              head sizes; values and gradients, each beside its bound

Both sides of a comparison read one checkpoint, see the same tokens and are asked in turns, each in
a process of its own (scorers share one); where the device does not hold both, one after the other,
and the output says so. Their losses must agree within 1 %. (The learning rate is 1e-30: steps do
all of their work, and weights stay what they are, so that a loss depends on its tokens alone.) MFU
is tokens/s times the model's FLOPs a token, by the formula under the table, over the peak of the
device's data sheet, for both sides alike. Memory is what the compiler plans for a step on our side,
the allocator's high-water mark on torch's.

Each part has its share of what is left of --minutes. A process that fails, is killed or takes too
long is a line in the table, and the others go on. accelerator.json and accelerator.md in --out are
written anew after every part. --tiny: little shapes, for processors; no figure means anything then.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerator_parts import MAKERS, Job, parity_cases
from accelerator_table import as_markdown
from workers import NoAnswer, Worker, serve

NEEDED = ("jax", "flax", "optax", "orbax", "ml_collections", "lm_eval", "transformers")
PEERS = ("torch", "peft", "bitsandbytes")
WHEELS = 'pip install ".[gpu]" torch peft bitsandbytes, or pip install ".[tpu]"'
SHARES = {"train": 38, "score": 20, "adapters": 22, "latency": 12, "parity": 8}
AGREE = 0.01  # of losses, relative

Rows = list[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("accelerator"), help="folder of the results")
    add("--minutes", type=float, default=9, help="for everything (default: 9)")
    add("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART")
    add("--data", type=Path, help="folder of documents, as for benchmarks/score.py")
    add("--tokenizer", type=Path, help="folder of a tokenizer, which reads them")
    add("--tiny", action="store_true", help="little shapes on a processor: a rehearsal")
    add("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, job = args.worker
        serve(lambda: MAKERS[name](Job(**json.loads(job))))
        return 0
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.error(f"these packages are missing: {', '.join(missing)}; {WHEELS}")
    if (args.data is None) != (args.tokenizer is None):
        parser.error("--data and --tokenizer go together: documents, and what reads them")
    for given in (args.data, args.tokenizer):
        if given is not None and not given.is_dir():
            parser.error(f"{given}: no such folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # ends the processes, too
    settle_environment(args.tiny)
    with tempfile.TemporaryDirectory() as folder:
        return Session(args, Path(folder), time.monotonic() + 60 * args.minutes).run()


def settle_environment(tiny: bool) -> None:
    """Of the processes. Several share the device: none may take it whole."""
    if tiny:
        os.environ["JAX_PLATFORMS"] = "cpu"
    for name, value in {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


class Session:
    """One call: the device, the time that is left, the processes that live, what was found."""

    def __init__(self, args: argparse.Namespace, folder: Path, end: float):
        data, tokenizer = (
            str(given.absolute()) if given else None for given in (args.data, args.tokenizer)
        )
        self.args, self.end, self.part_end = args, end, end
        size = "tiny" if args.tiny else "full"
        self.job = Job(str(folder), size, "", data, tokenizer)
        self.workers: list[Worker] = []
        self.device: dict[str, Any] = {}
        self.parts: dict[str, Any] = {}

    def run(self) -> int:
        try:
            with self.worker("probe") as probe:
                self.device = self.ask(probe, None)
        except NoAnswer as error:
            sys.exit(f"jax finds no device here: {error}; {WHEELS}")
        if self.device["platform"] == "cpu" and not self.args.tiny:
            print(
                f"jax sees no accelerator here, only a processor; {WHEELS}; --tiny rehearses "
                "without one",
                file=sys.stderr,
            )
            return 2
        self.job = dataclasses.replace(self.job, platform=self.device["platform"])
        self.args.out.mkdir(parents=True, exist_ok=True)
        chosen = [name for name in SHARES if name in self.args.only]
        for number, name in enumerate(chosen):
            begun, left = time.monotonic(), sum(SHARES[other] for other in chosen[number:])
            self.part_end = begun + (self.end - begun) * SHARES[name] / left
            rows: Rows = []
            part: dict[str, Any] = {"rows": rows, "notes": []}
            self.parts[name] = part
            try:
                PARTS[name](self, rows, part["notes"])
            except (NoAnswer, Exception) as error:
                part["notes"].append(f"broken off: {type(error).__name__}: {error}")
            finally:
                self.end_workers()
                part["seconds"] = time.monotonic() - begun
                self.write()
            print(as_markdown(name, part), flush=True)
        print(f"written: {self.args.out / 'accelerator.json'} and accelerator.md")
        return 0

    def write(self) -> None:
        """What there is so far, under its final names only when it is whole."""
        result = {
            "device": self.device,
            "versions": versions(),
            "tiny": self.args.tiny,
            "sizes": dataclasses.asdict(self.job.sizes),
            "parts": self.parts,
        }
        table = "\n".join(as_markdown(name, part) for name, part in self.parts.items())
        head = f"{self.device['count']} x {self.device['kind']}, " + ", ".join(
            f"{name} {number}" for name, number in result["versions"].items()
        )
        if self.args.tiny:
            head += "\n\nA rehearsal with little shapes: no figure here means anything."
        for name, text in (
            ("accelerator.json", json.dumps(result, indent=1)),
            ("accelerator.md", f"{head}\n\n{table}"),
        ):
            unfinished = self.args.out / f".{name}.unfinished"
            unfinished.write_text(text)
            unfinished.replace(self.args.out / name)

    # -------------------------------------------------------------------------- Processes

    def start(self, name: str) -> Worker:
        log = Path(self.job.folder) / f"{name}.{len(self.workers)}.log"
        worker = Worker(__file__, name, self.job.as_argument(), log)
        self.workers.append(worker)
        return worker

    @contextlib.contextmanager
    def worker(self, name: str) -> Iterator[Worker]:
        """One that ends with the block: a TPU serves one process at a time."""
        worker = self.start(name)
        try:
            yield worker
        finally:
            worker.end()

    def ask(self, worker: Worker, request: Any) -> dict[str, Any]:
        """Raises NoAnswer at the end of the part's time, too."""
        left = self.part_end - time.monotonic()
        if left <= 0:
            raise NoAnswer(f"{worker.name}: this part's time was over")
        return worker.ask(request, left)

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []

    def checkpoint(self) -> None:
        if not (self.job.checkpoint / "config.json").is_file():
            with self.worker("write") as worker:
                self.ask(worker, None)

    def no_peer(self, *packages: str) -> str | None:
        """Why torch cannot be measured beside us; None where it can."""
        if self.device["platform"] == "tpu":
            return "torch computes on no TPU"
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None


def versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", *PEERS, "transformers", "lm-eval"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# ------------------------------------------------------------------------------ Side by side


@dataclasses.dataclass(frozen=True)
class Contestant:
    """side: whose process. kind: what is trained, by what base."""

    side: str
    kind: str
    attention: str
    length: int

    def as_row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def contest(session: Session, sides: list[list[Contestant]], rows: Rows) -> None:
    """A row for each contestant. Those of a list that have the same kind and length are asked in
    turns, all rounds of them before the next, so that what there was no time for is missing whole.
    The processes of one list end before the next's begin.

    A process serves all of its side and kind; torch's has one kind alone, as its memory is that of
    the process.
    """
    for side in sides:
        processes: dict[Any, Worker] = {}
        groups: dict[Any, list[Contestant]] = {}
        for one in side:
            groups.setdefault((one.kind, one.length), []).append(one)
        for group in groups.values():
            rows += take_turns(session, group, processes)
        session.end_workers()


def take_turns(session: Session, group: list[Contestant], processes: dict[Any, Worker]) -> Rows:
    """The first turn compiles and makes the optimizer's state; it does not count."""
    sizes, rows = session.job.sizes, []
    answers: dict[Contestant, list[dict[str, Any]]] = {one: [] for one in group}
    for turn in range(sizes.rounds + 1):
        for one, before in list(answers.items()):
            whose = one.side if one.side == "ours" else (one.side, one.kind)
            try:
                if whose not in processes:
                    processes[whose] = session.start(one.side)
                steps = sizes.steps if turn else 2
                found = session.ask(processes[whose], one.as_row() | {"steps": steps})
            except NoAnswer as error:
                rows.append(contest_row(session, one, before) | {"error": str(error)})
                del answers[one]
                if whose in processes and processes[whose].ended():
                    del processes[whose]
            else:
                if "skipped" in found:
                    rows.append(one.as_row() | found)
                    del answers[one]
                else:
                    before.append(found)
    return rows + [contest_row(session, one, found) for one, found in answers.items()]


def contest_row(session: Session, one: Contestant, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds that there were."""
    row = one.as_row()
    if answers:
        row |= {"losses": [loss for answer in answers for loss in answer["losses"]]}
        row |= {"prepared": answers[0]["prepared"]}
        row |= {key: answers[0][key] for key in ("flops", "formula") if key in answers[0]}
    if len(answers) > 1:
        job = session.job
        seconds = statistics.median(s for answer in answers[1:] for s in answer["seconds"])
        memories = [answer["memory"] for answer in answers if answer["memory"] is not None]
        row |= {"step_seconds": seconds, "memory": max(memories, default=None)}
        row |= {"tokens_per_second": job.rows(one.length) * one.length / seconds}
        row |= {"rounds": len(answers) - 1}
    return row


def compare(session: Session, rows: Rows, notes: list[str]) -> None:
    """Ours over torch's speed, MFU of both by our count of FLOPs, and whether losses agree."""
    rows.sort(key=lambda row: (row["kind"], row["length"], row["side"]))
    peak, speed = session.device["peak"], "tokens_per_second"
    peers = {(row["kind"], row["length"]): row for row in rows if row["side"] == "torch"}
    for row in (row for row in rows if row["side"] == "ours" and speed in row):
        peer = peers.get((row["kind"], row["length"]), {})
        if speed in peer:
            row["ratio"] = row[speed] / peer[speed]
    counted = {(row["kind"], row["length"]): row for row in rows if "flops" in row}
    for row in rows:
        reference = counted.get((row["kind"], row["length"]))
        if reference is None or speed not in row:
            continue
        if peak is not None:
            flops = row[speed] * reference["flops"]
            row["mfu"] = flops / (peak * session.device["count"])
        pairs = list(zip(row["losses"], reference["losses"], strict=False))
        row["apart"] = max(abs(a - b) / abs(b) for a, b in pairs)
        row["agrees"] = row["apart"] <= AGREE
    for formula in {row["formula"] for row in counted.values()}:
        notes.append(f"model FLOPs: {formula}")
    kind = session.device["kind"]
    notes.append(
        f"no MFU: the peak of {kind} is not in chopjax/hardware.py"
        if peak is None
        else f"MFU of {peak / 1e12:,.0f} TFLOP/s a device ({kind})"
    )


def side_by_side(
    session: Session,
    ours: list[Contestant],
    peers: list[Contestant],
    last: list[Contestant],
    notes: list[str],
) -> list[list[Contestant]]:
    """One list where the device holds both sides' processes. last: ours, too."""
    need, there = needs(session.job), session.device["bytes"]
    if not peers or there is None or sum(need) <= there:
        return [[*ours, *peers, *last]]
    gigabytes = " and ".join(f"{each / 1e9:.0f}" for each in need)
    notes.append(
        f"the two sides one after the other: they need about {gigabytes} GB, and the device has "
        f"{there / 1e9:.0f}"
    )
    return [[*ours, *last], peers]


def needs(job: Job) -> tuple[float, float]:
    """Bytes that a full step takes of ours and of torch: parameters, gradients and two moments in
    bfloat16, and what the backward pass reads."""
    from chopjax.models import parameters
    from chopjax.models.families import translate

    config = translate(job.sizes.chop)[1]
    tokens = max(job.rows(length) * length for length in job.sizes.lengths)
    D, F = job.sizes.chop["hidden_size"], job.sizes.chop["intermediate_size"]
    state = 8 * parameters.count(config)
    kept = 2 * tokens * config.num_layers * (6 * D + 2 * F)  # of remat "dots"
    logits = 14 * tokens * config.vocab_size  # torch's whole, in both types
    return state + kept, state + 2 * kept + logits


# ------------------------------------------------------------------------------ The parts


def train(session: Session, rows: Rows, notes: list[str]) -> None:
    session.checkpoint()
    lengths, kernel = session.job.sizes.lengths, session.device["kernel"]
    own, plain = (
        [Contestant("ours", "full", each, length) for length in lengths] for each in (kernel, "xla")
    )
    how = "eager" if session.args.tiny else "compiled"
    peers = [Contestant("torch", "full", how, length) for length in lengths]
    if why := session.no_peer("torch"):
        peers = skipped(peers, why, rows)
    # xla's last: T x T scores are what most likely has no room.
    contest(session, side_by_side(session, own, peers, plain, notes), rows)
    compare(session, rows, notes)


def adapters(session: Session, rows: Rows, notes: list[str]) -> None:
    session.checkpoint()
    length, kernel = session.job.sizes.lengths[0], session.device["kernel"]
    ours = [Contestant("ours", kind, kernel, length) for kind in ("float", "nf4", "int8")]
    peers = []
    for kind, packages in (("float", ()), ("nf4", ("bitsandbytes",))):
        one = [Contestant("torch", kind, "eager", length)]
        why = session.no_peer("torch", "peft", *packages)
        peers += skipped(one, why, rows) if why else one
    contest(session, [[*ours, *peers]], rows)
    compare(session, rows, notes)


def skipped(those: list[Contestant], why: str, rows: Rows) -> list[Contestant]:
    rows += [one.as_row() | {"skipped": why} for one in those]
    return []


def score(session: Session, rows: Rows, notes: list[str]) -> None:
    if session.job.data is None:
        notes.append("synthetic documents: made-up words, lengths as the real tasks'")
    each_in_turn(session, "score", [{"task": name} for name in ("hellaswag", "mmlu")], rows)


def latency(session: Session, rows: Rows, notes: list[str]) -> None:
    job = session.job
    need, there = latency_needs(job), session.device["bytes"]
    if there is not None and need > there:
        notes.append(
            f"skipped: all layers and half of them take {need / 1e9:.0f} GB, and the device has "
            f"{there / 1e9:.0f}"
        )
        return
    shapes = [{"batch": batch, "length": length} for batch, length in job.sizes.passes]
    each_in_turn(session, "latency", shapes, rows)


def latency_needs(job: Job) -> float:
    """Bytes of both models in bfloat16, and of caches."""
    from chopjax.models import parameters
    from chopjax.models.families import translate

    config = translate(job.sizes.latency)[1]
    slots = max(batch * length for batch, length in job.sizes.passes)
    cache = 4 * slots * config.num_layers * config.num_kv_heads * config.head_dim
    return 1.5 * (2 * parameters.count(config) + 3 * cache)


def parity(session: Session, rows: Rows, notes: list[str]) -> None:
    notes.append(
        "differences from xla's attention in float32, over the largest number there is; the bound "
        "is twice xla's own in bfloat16 and one rounding"
    )
    each_in_turn(session, "parity", parity_cases(session.job.sizes), rows)


def each_in_turn(session: Session, name: str, requests: list[dict[str, Any]], rows: Rows) -> None:
    """A row for each request to one process, which is started anew where it ended."""
    worker = session.start(name)
    for request in requests:
        try:
            rows.append(request | session.ask(worker, request))
        except NoAnswer as error:
            rows.append(request | {"error": str(error)})
            if worker.ended():
                worker = session.start(name)


PARTS: dict[str, Callable[[Session, Rows, list[str]], None]] = {
    "train": train,
    "score": score,
    "adapters": adapters,
    "latency": latency,
    "parity": parity,
}

if __name__ == "__main__":
    sys.exit(main())
