from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
from transformers import AutoTokenizer

from chopjax import cli

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_the_command_as_a_stranger_would_use_it(
    mix_llama: Path, shared: Path, tmp_path: Path
) -> None:
    """One process of its own, for what is on which stream."""
    command = [sys.executable, "-m", "chopjax", "prepare"]
    text = str(shared / "corpora" / "tinystories.heldout.jsonl")
    rest = ["--tokenizer", str(mix_llama), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, text, *rest, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    store = json.loads(done.stdout)["store"]
    assert (store["documents"], store["text_bytes"]) == (100, 140_487)
    assert store["path"] == str(tmp_path / "out")
    assert not list(tmp_path.glob("out.*"))


def test_tables_verifying_and_mistakes(
    mix_llama: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, code: int) -> str:
        assert cli.main(["prepare", *arguments]) == code
        captured = capsys.readouterr()
        if code:
            assert captured.out == ""
            assert captured.err.startswith("chopjax prepare: error: ")
            return captured.err
        return captured.out

    text = str(shared / "corpora" / "tinystories.heldout.jsonl")
    out = str(tmp_path / "out")
    rest = ("--tokenizer", str(mix_llama), "--output", out, "--workers", "1")
    table = run(text, *rest, "--held-out", "10", code=0)
    lines = table.splitlines()
    assert lines[:2] == [f"{out}/train", f"{out}/held_out"]
    assert [line.split()[:2] for line in lines[3:]] == [["train", "90"], ["held_out", "10"]]
    assert run("--verify", out, code=0) == table
    assert list(json.loads(run("--verify", f"{out}/train", "--json", code=0))) == ["store"]
    path = tmp_path / "out" / "train" / "tokens-00000.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 255
    path.write_bytes(data)
    assert "out/train: checksums differ" in run("--verify", out, code=2)
    assert "held_out: was 10, is None" in run(text, *rest, code=2)
    assert "missing: --tokenizer, --output" in run(text, code=2)
    assert "no such file or folder" in run(text + "x", *rest, code=2)
    assert "--workers 0" in run(text, *rest, "--workers", "0", code=2)
    assert "no token store" in run("--verify", str(tmp_path), code=2)
    assert "nothing else" in run("--verify", out, text, code=2)


def test_conversations_and_inspecting_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.write_tokenizer(tmp_path / "bare", vocab_size=300)
    built = AutoTokenizer.from_pretrained(tmp_path / "bare")
    built.chat_template = TEMPLATE
    built.save_pretrained(tmp_path / "model")
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}) + "\n")

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.main([*arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    def prepare(model: str, *flags: str, code: int = 0) -> str:
        rest = ["--tokenizer", str(tmp_path / model), "--output", str(tmp_path / "out"), *flags]
        return run("prepare", str(tmp_path / "a.jsonl"), *rest, code=code)

    assert "--chat-template is for conversations" in prepare(
        "model", "--chat-template", "x", code=2
    )
    assert "no text in field 'text'" in prepare("model", code=2)
    assert "no chat template" in prepare("bare", "--chat", code=2)
    table = prepare("model", "--chat")
    whole, answer = (
        len(built.encode(text)) for text in ("[user]the cat\n[assistant]sat<|endoftext|>", "sat")
    )
    assert table.splitlines()[-1].split()[1:4] == ["1", str(whole), str(answer + 1)]
    assert run("inspect", str(tmp_path / "out"), "--check") == table
    about = json.loads(run("inspect", str(tmp_path / "out"), "--json"))["store"]
    assert (about["tokens"], about["loss_tokens"]) == (whole, answer + 1)
    assert "--step: " in run("inspect", str(tmp_path / "out"), "--step", "3", code=2)


def test_a_teacher_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that reads conversations, with some held out: of those it is not asked."""
    sizes = checkpoints.TINY | {"vocab_size": 300, "num_hidden_layers": 1}
    model = checkpoints.write_checkpoint(tmp_path / "model", **sizes)
    checkpoints.write_tokenizer(model, vocab_size=300)
    text = tmp_path / "a.txt"
    text.write_text("\n".join(checkpoints.TEXT.split()))
    out = tmp_path / "out"
    words = [str(text), "--unit", "line", "--tokenizer", str(model), "--held-out", "5"]

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.main(["prepare", "--output", str(out), *arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    teacher = ["--teacher", str(model), "--top-k", "3", "--sequence-length", "8"]
    assert "--top-k, --sequence-length: what a teacher is asked" in run(*teacher[2:], code=2)
    assert "say how long they are with --sequence-length" in run(*words, *teacher[:2], code=2)
    assert "no such folder" in run(*teacher, code=2)
    assert "missing: INPUT. Without it" in run(*words[1:], *teacher, code=2)
    assert "--top-k 300: from 1 to 299" in run(*words, *teacher, "--top-k", "300", code=2)
    assert not out.exists()
    table = run(*words, *teacher)
    assert f"train: the 3 likeliest next tokens by {model} (float32), in windows of 8: " in table
    assert not (out / "held_out" / "top_k").exists()
    assert run(*words, *teacher) == run(*teacher) == table
    assert "top_k: was 3, is 2" in run(*teacher, "--top-k", "2", code=2)
    assert "the 2 likeliest" in run(*teacher, "--top-k", "2", "--overwrite")
    about = cli.main(["inspect", str(out / "train"), "--json"]), capsys.readouterr().out
    said = json.loads(about[1])["store"]["teacher"]
    assert (said["name"], said["top_k"], said["mask_documents"]) == (str(model), 2, False)
    assert cli.main(["prepare", "--verify", str(out)]) == 0
    capsys.readouterr()
    (out / "train" / "top_k" / "notes").write_text("somebody else's")
    assert "top_k/notes" in run(*words, "--overwrite", code=2)
    (out / "train" / "top_k" / "notes").unlink()
    assert "likeliest" not in run(*words, "--overwrite")  # what was said of the old tokens went
    assert not (out / "train" / "top_k").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "model", "out"]
