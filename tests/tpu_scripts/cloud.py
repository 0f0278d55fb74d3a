"""A stand-in for gcloud, kubectl, sbatch and their like, and the sandbox in which scripts meet it.

The stand-in is one program under many names. It records its arguments and answers from a script:
`replies` maps a piece of the command line to the answers of successive calls, the last one for
ever. The answer {"machines": true} makes it a cloud: `ssh --command` and `scp` act on folders that
play the machines, so that what tpu.sh sends there really runs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
# The only other programs within reach of a script under test: no real gcloud can be called.
TOOLS = """bash chmod sh env cat cp date dirname basename git grep gzip hostname mkdir mktemp mv
    nohup rm sed setsid sleep sort tail tar touch whoami""".split()

DESCRIBE = "queued-resources describe"
ABSENT = {"code": 1, "err": "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: x\n"}


class Cloud:
    """A folder with settings, a PATH of stand-ins, and the record of what they were asked."""

    def __init__(self, folder: Path, stand_ins: tuple[str, ...], **settings: str):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        for name in stand_ins:
            # -S -E -s: a bare interpreter starts in 10 ms.
            self.program(name, f'exec "{sys.executable}" -SEs "{__file__}" {name} "$@"')
        (folder / "machines").mkdir()
        (folder / "temporary").mkdir()
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(folder),
            "TMPDIR": str(folder / "temporary"),
            "STAND_IN": str(folder),
        }
        self.settings = folder / "settings.sh"
        lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
        self.settings.write_text((SCRIPTS / "settings.sh").read_text() + "\n".join(lines) + "\n")
        self.reply({})

    def program(self, name: str, body: str) -> None:
        """Put a bash program on the PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)  # a link to the real one: writing would write through it
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def reply(self, replies: dict[str, list]) -> None:
        (self.folder / "replies.json").write_text(json.dumps(replies))

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        command = [str(SCRIPTS / script), *arguments, "--settings", str(self.settings)]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"{script} {arguments} hangs:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    @property
    def calls(self) -> list[list[str]]:
        """Every call of a stand-in, in order: name and arguments."""
        record = self.folder / "calls.jsonl"
        return (
            [json.loads(line) for line in record.read_text().splitlines()]
            if record.exists()
            else []
        )

    def story(self) -> list[str]:
        """The calls in a word each, questions left out: create, delete, scp, setup, start, stop."""
        words = []
        for call in self.calls:
            line = " ".join(call)
            for word in ("remote_job.sh start", "remote_job.sh stop", "remote_job.sh tail"):
                if word in line:
                    words.append(word.split()[1])
                    break
            else:
                if "uv venv" in line:
                    words.append("setup")
                for word in ("create", "delete", "scp"):
                    if word in call:
                        words.append(word)
        return words


def _answer(folder: Path, line: str) -> dict:
    replies = json.loads((folder / "replies.json").read_text())
    for piece, answers in replies.items():
        if piece in line:
            counter = folder / ("count-" + piece.replace("/", "_"))
            seen = counter.stat().st_size if counter.exists() else 0
            with counter.open("ab") as file:
                file.write(b".")
            answer = answers[min(seen, len(answers) - 1)]
            return {"out": answer} if isinstance(answer, str) else answer
    return {}


def _on_machines(folder: Path, arguments: list[str]) -> int:
    """ssh and scp on folders, the machines' homes; fails with the first exit code that is not 0."""
    worst = 0
    machines = sorted((folder / "machines").iterdir())
    if "--worker=0" in arguments:
        del machines[1:]
    for machine in machines:
        if "scp" in arguments:
            start, end = arguments[arguments.index("scp") + 1 :][:2]
            if ":" in end:
                shutil.copy(start, machine / end.partition(":")[2])
            else:
                shutil.copy(machine / start.partition(":")[2], end)
            continue
        command = next(a for a in arguments if a.startswith("--command=")).partition("=")[2]
        environment = {**os.environ, "HOME": str(machine)}
        done = subprocess.run(
            ["bash", "-c", command], cwd=machine, env=environment, stdin=subprocess.DEVNULL
        )
        worst = worst or done.returncode
    return worst


def _stand_in() -> int:
    folder = Path(os.environ["STAND_IN"])
    arguments = sys.argv[1:]
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    answer = _answer(folder, " ".join(arguments))
    sys.stdout.write(answer.get("out", ""))
    sys.stderr.write(answer.get("err", ""))
    for machine in answer.get("boot", []):
        (folder / "machines" / machine).mkdir()
    if answer.get("lose"):
        for machine in (folder / "machines").iterdir():
            shutil.rmtree(machine)
    if answer.get("stdin"):
        (folder / "stdin").write_text(sys.stdin.read())
    if answer.get("machines"):
        sys.stdout.flush()
        return _on_machines(folder, arguments)
    return answer.get("code", 0)


def more_settings(cloud: Cloud, **settings: str) -> None:
    with cloud.settings.open("a") as file:
        file.writelines(f"{name}='{value}'\n" for name, value in settings.items())


if __name__ == "__main__":
    sys.exit(_stand_in())
