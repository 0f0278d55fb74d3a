"""What a model card says of a model that was taught to classify, from its entry in chopjax.json's
history (provenance.py). No jax.

    {"step": "classification",
     "template": {"name": …, "text": …, "classes": {WORD: [what the data calls it], …}},
     "before": …,                  what a prompt begins with: an example of each class with its word
     "label_tokens": […],          the id of each word, where the label words are what is compared
     "method": …, "head": "lm" or "classifier", "seed": …, "settings": {…},
     "train_examples": …, "epochs": …, "best_epoch": …, "held_out_accuracy": …,
     "test_examples": …, "accuracy": …, "macro_f1": …}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "prefix"  # the method whose result are virtual tokens, which peft holds
CLASSIFIER = "classifier"  # the head that is a linear map of its own

_PROMPT = """\
## Use

`chopjax.json` holds the template and the examples that a prompt begins with.

```python
import json

{imports}

folder = "."  # where {file} is
with open(f"{{folder}}/chopjax.json") as file:
    about = json.load(file)["history"][-1]
words = list(about["template"]["classes"])
prompt = about["before"] + about["template"]["text"].replace("{{x}}", "the text to classify")
{load}
inputs = tokenizer(prompt, return_tensors="pt")
print(words[model(**inputs).logits{logits}.argmax()])
```"""
_LOGITS = {True: "[0]", False: '[0, -1, about["label_tokens"]]'}  # by whether it has a classifier


def has_classifier(entry: Mapping[str, Any] | None) -> bool:
    """Whether a head of its own stands in place of the language model's."""
    return entry is not None and entry.get("head") == CLASSIFIER


def has_prefix(entry: Mapping[str, Any] | None) -> bool:
    """Whether virtual tokens stand before the prompt."""
    return entry is not None and entry.get("method") == PREFIX


def use(entry: Mapping[str, Any]) -> str:
    """The section on how to use it."""
    own = has_classifier(entry)
    kind = "AutoModelForSequenceClassification" if own else "AutoModelForCausalLM"
    imports, place = f"from transformers import {kind}, AutoTokenizer", "folder"
    load = f"model = {kind}.from_pretrained(folder)"
    file = "this file"
    if has_prefix(entry):
        # Where they are loaded says where the model before which they stand is.
        imports, place = f"from peft import PeftModel\n{imports}", 'f"{folder}/base"'
        load = f"model = PeftModel.from_pretrained({kind}.from_pretrained({place}), folder)"
        file = "adapter_config.json"
    load += f"\ntokenizer = AutoTokenizer.from_pretrained({place})"
    return _PROMPT.format(imports=imports, file=file, load=load, logits=_LOGITS[own])


def facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the card's table, of a record that may be anybody's."""
    template = entry.get("template")
    about: Mapping[str, Any] = template if isinstance(template, dict) else {}
    classes = about.get("classes")
    words = ", ".join(map(str, classes)) if isinstance(classes, dict) else str(classes)
    settings = entry.get("settings")
    given = [f"{k} {v}" for k, v in settings.items()] if isinstance(settings, dict) else []
    how = [f"method {entry.get('method')}", f"head {entry.get('head')}", *given]
    how += [f"seed {entry.get('seed')}"]
    epochs = f"{entry.get('epochs')} epochs, the best of them {entry.get('best_epoch')}"
    accuracy = (
        f"{_percent(entry.get('accuracy'))} on {entry.get('test_examples')} test examples, "
        f"macro-F1 {_percent(entry.get('macro_f1'))}; on held-out examples "
        f"{_percent(entry.get('held_out_accuracy'))}"
    )
    return [
        ("classification", f"{about.get('name')}: {words}"),
        ("classification: trained", ", ".join(how)),
        (
            "classification: length",
            f"{entry.get('train_examples')} examples, {epochs}" if entry.get("epochs") else "none",
        ),
        ("classification: accuracy", accuracy),
    ]


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else str(value)
