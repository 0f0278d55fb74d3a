"""What `make demo` needs and every machine has: text, a tokenizer and a task, made from Python's
own documentation.

    python -m chopjax.demo FOLDER

writes FOLDER/train.jsonl, FOLDER/held_out.jsonl, FOLDER/tokenizer/ and FOLDER/tasks/.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chopjax.demo.standard_library import documents
from chopjax.disk.atomic import new_folder
from chopjax.progress import say

VOCABULARY = 2048
HELD_OUT = 0.04  # of the documents
QUESTIONS = 200
CONTEXT_WORDS, ENDING_WORDS, QUESTION_STRIDE = 24, 8, 40
SEED = 0
END = "<|endoftext|>"

TASK = """\
# Which of four endings follows? The three wrong ones end other documents of the same text.
task: demo_endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m chopjax.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write text, tokenizer and task")
    folder = parser.parse_args(argv).folder
    if (folder / "train.jsonl").exists():
        say(f"{folder}: text, tokenizer and task are there")
        return 0
    train, held_out = split(documents())
    with new_folder(folder, "demo") as temporary:
        write_jsonl(temporary / "train.jsonl", ({"text": text} for text in train))
        write_jsonl(temporary / "held_out.jsonl", ({"text": text} for text in held_out))
        write_tokenizer(temporary / "tokenizer", train)
        (temporary / "tasks").mkdir()
        write_jsonl(temporary / "tasks" / "endings.jsonl", questions(held_out))
        # The task names its data by the place where the folder will stand.
        data = (folder / "tasks" / "endings.jsonl").absolute()
        (temporary / "tasks" / "demo_endings.yaml").write_text(TASK.format(data=data))
    size = sum(map(len, train))
    say(f"{folder}: {len(train):,} documents, {size / 1e6:.1f} M characters to train on")
    return 0


def split(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """(training, held out), shuffled with a fixed seed."""
    shuffled = list(texts)
    random.Random(SEED).shuffle(shuffled)
    held_out = round(len(shuffled) * HELD_OUT)
    return shuffled[held_out:], shuffled[:held_out]


def write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """A byte-level BPE of 2,048 pieces in the files that transformers reads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def questions(texts: Iterable[str]) -> list[dict[str, object]]:
    """Multiple choice from text nobody trained on: {context, endings[4], label}."""
    pairs = []
    for text in texts:
        words = text.split()
        # Windows with a gap between them, so that no ending is another question's context.
        for start in range(0, len(words) - CONTEXT_WORDS - ENDING_WORDS, QUESTION_STRIDE):
            middle = start + CONTEXT_WORDS
            stop = middle + ENDING_WORDS
            pairs.append((" ".join(words[start:middle]), " ".join(words[middle:stop])))
    rng = random.Random(SEED)
    rng.shuffle(pairs)
    rows: list[dict[str, object]] = []
    for index, (context, ending) in enumerate(pairs[:QUESTIONS]):
        others = [other for i, (_, other) in enumerate(pairs) if i != index and other != ending]
        endings = rng.sample(others, 3)
        label = rng.randrange(4)
        endings.insert(label, ending)
        rows.append({"context": context, "endings": endings, "label": label})
    return rows


if __name__ == "__main__":
    sys.exit(main())
