"""Runs damaged things through chopjax and judges what it does.

    python tests/fault_runner.py TARGET[:CASES]… [--cases N] [--first I] [--step K] [--seed S]

prints one JSON line a case. The suite runs a few hundred, benchmarks/fuzz.py thousands. Case number
i of a seed is always the same: what is made, what is broken and what is run are drawn from
`random.Random(f"{target} {seed} {i}")`.

What must hold of every command (`_judge`): exit code 0, or 2 with one clear message below 2 kB on
standard error and nothing on standard output; `--json` prints JSON (no NaN, no Infinity); no
traceback, no control characters; less than 20 s of the processor and 1 GB more memory than before;
nothing left behind where it failed, the input as it was; nothing read from the folder `secret`
beside the input, to which links of some faults lead.

Commands run in forks of this process, which has imported what they need, so that a case takes
milliseconds. Nothing here may start jax's backend or a thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from fault_targets import TARGETS

CPU_SECONDS = 20
WALL_SECONDS = 300  # a hang; machines may be loaded
MEMORY_BYTES = 1_000_000_000
MESSAGE_BYTES = 2_000
ADDRESS_BYTES = 16_000_000_000  # so that a fault cannot take the machine's memory
SECRET = b"the-secret-of-another-folder"


@dataclasses.dataclass
class Outcome:
    """What a command did; `problems` is empty where all is well."""

    argv: list[str]
    code: int
    problems: list[str]
    message: str


def run_case(name: str, seed: int, number: int, folder: Path) -> tuple[str, str, list[Outcome]]:
    """Make, break and run case `number` in an empty folder: the fault, what it did, outcomes."""
    target = TARGETS[name]
    rng = random.Random(f"{name} {seed} {number}")
    thing = folder / "thing"
    thing.mkdir()
    (folder / "secret").mkdir()
    (folder / "secret" / "secret.txt").write_bytes(SECRET)
    target.make(thing, rng)
    kinds = list(target.faults)
    kind, did = "none", None
    while did is None:
        kind = rng.choice(kinds)
        did = target.faults[kind](thing, rng)
    outcomes, written = [], None
    for index, command in enumerate(target.commands):
        skipped = rng.random() >= command.share
        if skipped and not command.after:
            written = None
        if skipped or (command.after and written is None):
            continue
        source = written if command.after else thing
        out = folder / f"out{index}"
        argv = [word.format(thing=source, out=out, folder=folder) for word in command.argv]
        outcome = _run(argv, folder, out)
        outcomes.append(outcome)
        if not command.after:
            written = out if outcome.code == 0 and out.exists() else None
    return kind, did, outcomes


def _run(argv: list[str], folder: Path, out: Path) -> Outcome:
    before = _listing(folder)
    streams: list[BinaryIO] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    reads, writes = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reads)
        _child(argv, folder, streams, writes)
    os.close(writes)
    status, usage, late = _wait(child)
    with open(reads, "rb") as pipe:
        outside = pipe.read().decode("utf-8", "replace").splitlines()
    text = []
    for stream in streams:
        stream.seek(0)
        text.append(stream.read())
        stream.close()
    code = os.waitstatus_to_exitcode(status)
    problems = _judge(argv, code, *text)
    if late:
        problems.append(f"no end within {WALL_SECONDS} s")
    seconds = usage.ru_utime + usage.ru_stime
    if seconds > CPU_SECONDS:
        problems.append(f"{seconds:.0f} s of the processor")
    grown = 1024 * (usage.ru_maxrss - _own_memory_kib())
    if grown > MEMORY_BYTES:
        problems.append(f"{grown / 1e9:.1f} GB more memory")
    problems += [f"read outside: {path}" for path in sorted(set(outside))[:3]]
    left = {path for path in _listing(folder) - before if not _below(path[0], out)}
    gone = before - _listing(folder)
    problems += [f"left behind: {path[0]}" for path in sorted(left)[:3]]
    problems += [f"changed or removed: {path[0]}" for path in sorted(gone)[:3]]
    if code != 0 and out.exists():
        problems.append("the output is there though the command failed")
    return Outcome(argv, code, problems, text[1].decode("utf-8", "replace")[-3000:])


def _own_memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _below(path: str, out: Path) -> bool:
    return path == out.name or path.startswith(out.name + "/")


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    """(path, kind and rights, size or time of change) of everything in a folder."""
    found = set()
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            at = os.lstat(path)
            size = 0 if name in folders else at.st_size
            found.add((os.path.relpath(path, folder), at.st_mode, size))
    return found


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a child; kill it where it hangs."""
    late = time.monotonic() + WALL_SECONDS
    pause = 0.001
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage, False
        if time.monotonic() > late:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage, True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _child(argv: list[str], folder: Path, streams: list[BinaryIO], report: int) -> None:
    """The command, in the fork. Does not return."""
    code = 99
    try:
        for number, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 1, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        secret = os.path.realpath(folder / "secret")
        os.chdir(folder)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
                path = os.path.realpath(arguments[0])
                if path.startswith(secret + os.sep):
                    os.write(report, f"{path}\n".encode("utf-8", "replace"))

        sys.addaudithook(watch)
        from chopjax.cli import main

        try:
            code = main(argv)
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _judge(argv: list[str], code: int, out: bytes, err: bytes) -> list[str]:
    """What is wrong with how a command ended."""
    problems = []
    if code not in (0, 2):
        problems.append(f"exit code {code}")
    if b"Traceback" in err or b"Traceback" in out:
        problems.append("a traceback")
    if SECRET in err + out:
        problems.append("the secret is printed")
    odd = {byte for byte in err + out if byte < 32 and byte not in b"\n\t\r"} | (
        {127} if 127 in err + out else set()
    )
    if odd:
        problems.append(f"control characters {sorted(odd)}")
    if code == 2:
        start = f"chopjax {argv[0]}: error: ".encode()
        if err.count(start) != 1:
            problems.append(f"{err.count(start)} messages")
        message = err[err.find(start) :]
        if len(message) > MESSAGE_BYTES:
            problems.append(f"a message of {len(message)} bytes")
        if len(message) < len(start) + 10:
            problems.append("an empty message")
        if out.strip():
            problems.append("output beside the error")
    if code == 0 and "--json" in argv:
        problems += _judge_json(out)
    return problems


def _judge_json(out: bytes) -> list[str]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        json.loads(out.decode("utf-8"), parse_constant=refuse)
    except ValueError as error:
        return [f"--json: {str(error)[:200]}"]
    return []


# ----------------------------------------------------------------------------------- many cases


@dataclasses.dataclass(frozen=True)
class Result:
    """A case and what its commands did."""

    target: str
    number: int
    fault: str
    did: str
    outcomes: list[Outcome]


def run_cases(name: str, seed: int, numbers: Sequence[int]) -> Iterator[Result]:
    """Cases one after another, each in a folder of its own that goes after."""
    TARGETS[name].prepare()
    gc.collect()
    gc.freeze()  # or every fork's collections would copy what it shares with this process
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        try:
            yield Result(name, number, *run_case(name, seed, number, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("targets", nargs="+", metavar="TARGET[:CASES]")
    parser.add_argument("--cases", type=int, default=100, help="of a target that does not say")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for word in args.targets:
        name, _, cases = word.partition(":")
        numbers = range(args.first, int(cases or args.cases), args.step)
        for result in run_cases(name, args.seed, numbers):
            print(json.dumps(dataclasses.asdict(result)), flush=True)


if __name__ == "__main__":
    main()
