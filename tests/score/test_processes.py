"""Two processes score and generate what one does; the second ends when the first does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints
import local_tasks
import pytest
from launch.ports import finish, free_port

from chopjax.launch.distributed import EXIT_PEER_LOST

GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["a"], max_gen_toks: 20}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1.0}}
"""
WITHOUT_TORCH = Path(__file__).parents[1] / "without_torch.py"  # its import takes seconds
TASKS = "tiny_choice,tiny_rolling,tiny_generate"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("processes")
    checkpoints.write_checkpoint(
        folder / "model", "llama", vocab_size=300, max_position_embeddings=64
    )
    checkpoints.write_tokenizer(folder / "model", vocab_size=300)
    tasks = local_tasks.write_tasks(folder / "tasks")
    (tasks / "generate.yaml").write_text(GENERATE.format(data=tasks / "data.jsonl"))
    return folder / "model", tasks


def score(model: Path, tasks: Path, output: Path, count: int) -> list[subprocess.Popen]:
    """`chopjax score` on four fake devices, split among so many processes."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(4 // count),
    }
    command = [sys.executable, str(WITHOUT_TORCH), "score", str(model), "--tasks", TASKS]
    command += ["--include-path", str(tasks), "--output", str(output), "--json", "--log-samples"]
    command += ["--fsdp", "2"]
    if count > 1:
        command += ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
    return [
        subprocess.Popen(
            command + (["--process-id", str(index)] if count > 1 else []),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def samples(folder: Path) -> dict[str, list]:
    return {
        path.name.rsplit("_", 1)[0]: [
            json.loads(line)["resps"] for line in path.read_text().splitlines()
        ]
        for path in folder.glob("*/samples_*.jsonl")
    }


def test_two_processes_answer_as_one(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    both = score(*prepared, tmp_path / "two", 2)
    ((code, out, err),) = finish(score(*prepared, tmp_path / "one", 1))
    assert code == 0, err
    (first, first_out, first_err), (second, second_out, second_err) = finish(both)
    assert (first, second) == (0, 0), first_err + second_err
    assert "{" not in second_out  # the first process speaks for all; gloo mutters
    assert (
        json.loads(first_out.splitlines()[-1])["results"].keys()
        == json.loads(out)["results"].keys()
    )
    one, two = samples(tmp_path / "one"), samples(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one) == 3
    for task, answers in one.items():
        for mine, other in zip(answers, two[task], strict=True):
            for (answer,), (expected,) in zip(mine, other, strict=True):
                if task == "samples_tiny_choice":
                    assert answer[0] == pytest.approx(expected[0], abs=1e-4)
                    assert answer[1] == expected[1]
                elif task == "samples_tiny_rolling":
                    assert answer == pytest.approx(expected, abs=1e-4)
                else:
                    assert answer == expected


@pytest.mark.thorough
def test_the_others_end_with_the_first(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    model, tasks = prepared
    output = tmp_path / "out"
    output.mkdir()
    mended = tmp_path / "model"
    shutil.copytree(model, mended)
    (mended / "generation_config.json").write_text('{"num_beams": 3}')  # found while others wait
    (first, _, first_err), (second, _, second_err) = finish(score(mended, tasks, output, 2))
    assert first == 2
    assert "chopjax score: error: " in first_err
    assert "Traceback" not in first_err
    # Whichever comes first: its collective fails, or jax aborts it.
    assert second in (EXIT_PEER_LOST, -signal.SIGABRT), second_err
