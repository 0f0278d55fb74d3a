"""Chat template, system's words, turns and shares of documents against the hf backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import lm_eval.evaluator
import local_tasks
import pytest
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from chopjax.cli import main
from chopjax.errors import UserError
from chopjax.score.chat import Chat
from chopjax.score.harness import ChopjaxLM
from chopjax.score.model import open_engine
from chopjax.score.run import evaluate
from chopjax.score.tasks import load_tasks

NATS = 1e-3
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + TEMPLATE
)


def write(folder: Path, template: Any = TEMPLATE) -> Path:
    checkpoints.write_checkpoint(folder, vocab_size=300, max_position_embeddings=256)
    checkpoints.write_tokenizer(folder, vocab_size=300)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_tasks.write_tasks(tmp_path_factory.mktemp("tasks"))


def both(
    folder: Path, include: Path, chat: Chat, limit: float | None = None, shots: int = 0
) -> dict[str, Any]:
    """Our results, after prompts, answers and figures were found to be the hf backend's."""
    names = ["tiny_choice"]
    ours = evaluate(
        *open_engine(str(folder), dtype="float32"),
        load_tasks(names, include, shots),
        limit=limit,
        chat=chat,
    )
    theirs = lm_eval.evaluator.evaluate(
        HFLM(str(folder), device="cpu", dtype="float32", batch_size=4),
        load_tasks(names, include, shots),
        limit=limit,
        bootstrap_iters=0,
        **chat.as_flags(),
    )
    assert ours["n-samples"] == theirs["n-samples"]
    pairs = zip(ours["samples"]["tiny_choice"], theirs["samples"]["tiny_choice"], strict=True)
    for mine, other in pairs:
        assert mine["arguments"] == other["arguments"]
        for (answer,), (expected,) in zip(mine["resps"], other["resps"], strict=True):
            assert abs(answer[0] - expected[0]) <= NATS
            assert answer[1] == expected[1]
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"]["tiny_choice"][metric] == theirs["results"]["tiny_choice"][metric]
    return ours


@pytest.mark.parametrize(
    ("chat", "shots"),
    [
        (Chat(True), 0),
        (Chat(True, "Answer well."), 2),
        (Chat(True, "Answer well.", multiturn=False), 2),
        (Chat(False, "Answer well."), 1),
    ],
)
def test_as_the_hf_backend(chat: Chat, shots: int, tasks: Path, tmp_path: Path) -> None:
    found = both(write(tmp_path), tasks, chat, shots=shots)
    assert found["chat_template"] == (TEMPLATE if chat.template else None)
    assert found["system_instruction"] == chat.system_instruction
    first = found["samples"]["tiny_choice"][0]["arguments"][0][0]
    assert first.startswith("<|endoftext|>[") == bool(chat.template)
    assert (chat.system_instruction or "") in first


def test_a_template_without_a_system_role(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both(write(tmp_path, NO_SYSTEM), tasks, Chat(True, "Answer well."))
    assert capsys.readouterr().err.count("takes no system message") == 1


@pytest.mark.parametrize(("limit", "documents"), [(0.4, 3), (0.01, 1), (2, 2)])
def test_a_share_of_the_documents(
    limit: float, documents: int, tasks: Path, tmp_path: Path
) -> None:
    found = both(write(tmp_path), tasks, Chat(), limit)
    assert len(found["samples"]["tiny_choice"]) == documents


def test_a_named_template(tasks: Path, tmp_path: Path) -> None:
    named = {"default": TEMPLATE, "short": "{{ messages[0].content }}"}
    folder = write(tmp_path, named)
    both(folder, tasks, Chat(True))
    engine = open_engine(str(folder), dtype="float32")
    found = evaluate(*engine, load_tasks(["tiny_choice"], tasks), limit=1, chat=Chat("short"))
    assert found["chat_template"] == named["short"]
    assert found["samples"]["tiny_choice"][0]["arguments"][0][0].startswith("Question: ")
    with pytest.raises(UserError, match="named long; name one of default, short"):
        evaluate(*engine, load_tasks(["tiny_choice"], tasks), limit=1, chat=Chat("long"))


def test_a_template_that_fails(tmp_path: Path) -> None:
    for template in ("{{ raise_exception('never') }}", "{{ messages[0].content + 1 }}"):
        ours = ChopjaxLM(str(write(tmp_path, template)), dtype="float32")
        with pytest.raises(UserError, match="its chat template fails: "):
            ours.apply_chat_template([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fewshot-as-multiturn"], "and needs --apply-chat-template"),
        (["--apply-chat-template", "long"], "has one chat template, without a name"),
        (["--limit", "1.5"], "--limit 1.5: a number from 1, or a share"),
        (["--limit", "nan"], "--limit nan: a number from 1, or a share"),
        (["--limit", "-0.1"], "--limit -0.1: a number from 1, or a share"),
    ],
)
def test_mistakes(
    flags: list[str],
    message: str,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write(tmp_path / "m")
    words = ["--tasks", "tiny_choice", "--include-path", str(tasks)]
    assert main(["score", str(model), *words, "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_template(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "m", None)
    words = ["--tasks", "tiny_choice", "--include-path", str(tasks), "--apply-chat-template"]
    assert main(["score", str(model), *words, "--output", str(tmp_path / "out")]) == 2
    assert "its tokenizer has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = write(tmp_path / "m"), tmp_path / "out"
    words = ["--tasks", "tiny_choice", "--include-path", str(tasks), "--output-path", str(out)]
    words += ["--apply-chat-template", "--system-instruction", "Be short.", "--limit", "0.5"]
    words += ["--fewshot-as-multiturn", "false", "--batch-size", "auto", "--num-fewshot", "1"]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"the cat {n}"}) + "\n" for n in range(5)))
    assert main(["score", str(model), *words, "--text", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n-samples"]["tiny_choice"] == {"original": 6, "effective": 3}
    assert found["n-samples"]["text.jsonl"]["effective"] == 3
    assert found["config"]["limit"] == 0.5
    assert found["system_instruction"] == "Be short."
    assert found["chat_template"] == TEMPLATE
    assert found["fewshot_as_multiturn"] is False
