"""Which tokens are the assistant's, beside transformers' own mask and by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chopjax.data.chat import ChatEncoder, Encoded, carriers, load_chat
from chopjax.data.chat_template import ChatTemplate
from chopjax.data.messages import Message, as_text
from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.errors import UserError

# As published, shortened where that changes nothing about answers.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # TRL's training template for ChatML
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # thoughts of earlier turns are dropped
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENS_OTHERWISE = CHATML.replace("assistant\n", "assistant\n<think>\n")
ROLES = ("system", "user", "assistant")


def conversation(*turns: str) -> list[Message]:
    """ "user: words" → a message."""
    pairs = (turn.partition(": ") for turn in turns)
    return [{"role": role, "content": content} for role, _, content in pairs]


TWO = conversation("user: the fox?", "assistant: a hen", "user: and?", "assistant:  ran \n")


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer with ChatML's two tokens and template."""
    built = AutoTokenizer.from_pretrained(tokenizer_folder)
    built.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    built.chat_template = CHATML
    out = tmp_path_factory.mktemp("chat")
    built.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoders(folder: Path, tokenizer: Tokenizer) -> dict[str, ChatEncoder]:
    """By template, which is asked for by its text."""

    class Encoders(dict[str, ChatEncoder]):
        def __missing__(self, template: str) -> ChatEncoder:
            path = folder.parent / f"{abs(hash(template))}.jinja"
            path.write_text(template)
            self[template] = load_chat(folder, tokenizer, file=path)
            return self[template]

    return Encoders()


def encode(encoder: ChatEncoder, messages: list[Message]) -> list[Encoded]:
    (parts,) = encoder.encode_batch([as_text(messages)])
    return parts


def said(tokenizer: Tokenizer, part: Encoded) -> list[str]:
    """The runs of tokens that carry loss, as text."""
    assert part.carries is not None
    runs: list[list[int]] = []
    for index, (token, carries) in enumerate(zip(part.ids, part.carries, strict=True)):
        if carries and (not index or not part.carries[index - 1]):
            runs.append([])
        if carries:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


words = st.text("the fox日é \n<>", min_size=1, max_size=12).filter(str.strip)


@given(turns=st.lists(st.tuples(st.sampled_from(ROLES), words), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_beside_transformers_assistant_mask(
    turns: list[tuple[str, str]], encoders: dict[str, ChatEncoder], theirs: Any
) -> None:
    """Of a template that marks answers, and of the same template without marks."""
    messages = [{"role": role, "content": content} for role, content in turns]
    answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
    for template in (MARKED, CHATML):
        found = encode(encoders[template], messages)
        if not [index for index in answers if index]:
            assert found == []
            continue
        cut = messages[: answers[-1] + 1]
        expected = theirs.apply_chat_template(
            cut, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        ((_, ids, carries),) = found
        assert ids == expected["input_ids"]
        if answers[0] or template == MARKED:  # nobody asked for what stands first
            assert carries == [bool(mask) for mask in expected["assistant_masks"]]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [["a hen<|im_end|>", " ran \n<|im_end|>"]]),
        (MARKED, [["a hen<|im_end|>", " ran \n<|im_end|>"]]),
        (LLAMA2, [[" a hen </s>", " ran </s>"]]),
        # Each answer as it was given, after what was there then.
        (QWEN3, [[f"<think>\n\n</think>\n\n{w}<|im_end|>"] for w in ("a hen", " ran \n")]),
        # No words open an answer: the model must write the role itself.
        (
            CHATML.partition("{% if add")[0],
            [[f"<|im_start|>assistant\n{w}<|im_end|>" for w in ("a hen", " ran \n")]],
        ),
    ],
    ids=["chatml", "marked", "llama2", "qwen3", "unopened"],
)
def test_templates(
    template: str,
    expected: list[list[str]],
    encoders: dict[str, ChatEncoder],
    tokenizer: Tokenizer,
    theirs: Any,
) -> None:
    found = encode(encoders[template], [*TWO, {"role": "user", "content": "unanswered"}])
    assert [said(tokenizer, part) for part in found] == expected
    whole = theirs.apply_chat_template(TWO, chat_template=template, return_dict=False)
    assert found[-1].ids == whole
    if template == QWEN3:
        first = theirs.apply_chat_template(TWO[:2], chat_template=template, return_dict=False)
        assert found[0].ids == first


def test_empty_answers_are_context(encoders: dict[str, ChatEncoder], tokenizer: Tokenizer) -> None:
    encoder = encoders[CHATML]
    silent = conversation("user: the fox?", "assistant: ")
    assert encode(encoder, silent) == encode(encoder, []) == encode(encoder, silent[:1]) == []
    (part,) = encode(encoder, [*silent, *TWO[:2]])
    assert said(tokenizer, part) == ["a hen<|im_end|>"]
    assert part.text.startswith("<|im_start|>user\nthe fox?<|im_end|>\n<|im_start|>assistant\n<|")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (OPENS_OTHERWISE, TWO, "does not show what the assistant says: .*generation.*--chat-templ"),
        ("{{ messages[0].content }}", TWO, "does not show what the assistant says"),
        (LLAMA2, TWO[1:], r"chat template fails: roles must alternate, in the conv.*a hen"),
        ("{{ messages[0].content + 1 }}", TWO, "its chat template fails: "),
        ("{% for %}", TWO, "its chat template fails: "),
    ],
)
def test_templates_that_cannot(
    template: str, messages: list[Message], message: str, encoders: dict[str, ChatEncoder]
) -> None:
    with pytest.raises(UserError, match=message):
        encode(encoders[template], messages)


def test_no_template(folder: Path, tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no chat template .*leave --chat out"):
        load_chat(tokenizer_folder, tokenizer)
    with pytest.raises(UserError, match=r"--chat-template .*absent: cannot be read \(No such"):
        load_chat(folder, tokenizer, file=folder / "absent")


def test_todays_date_is_the_same_every_day(
    folder: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder.parent / "dated.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}|{{ strftime_now( \"%Y\" ) }} " + CHATML)
    encoder = load_chat(folder, tokenizer, file=path)
    assert "it is told 2024-07-26, every day" in capsys.readouterr().err
    assert encode(encoder, TWO)[0].text.startswith("26 Jul 2024|2024 <|im_start|>")


def test_the_fingerprint_is_of_template_and_tokens(encoders: dict[str, ChatEncoder]) -> None:
    first = encoders[CHATML]
    assert first.fingerprint != encoders[QWEN3].fingerprint
    other = ChatTemplate("other", CHATML, {"bos_token": "?"})
    assert ChatEncoder(other, first.backend, ()).fingerprint != first.fingerprint
    same = ChatTemplate("renamed", CHATML, first.template.special_tokens)
    assert ChatEncoder(same, first.backend, ()).fingerprint == first.fingerprint


def test_a_token_over_the_joint_is_the_assistants() -> None:
    assert carriers([(0, 2), (2, 4), (4, 4), (4, 6)], [(3, 5)]) == [False, True, True, True]
    assert carriers([(0, 2), (2, 4)], []) == [False, False]


def test_smollm2s_own_template() -> None:
    """As make_smollm2.py makes it."""
    place = os.environ.get("CHOPJAX_SMOLLM2", "")
    if not Path(place, "tokenizer.json").is_file():
        pytest.skip("no SmolLM2 in $CHOPJAX_SMOLLM2")
    tokenizer = load_tokenizer(place)
    (part,) = encode(load_chat(place, tokenizer), TWO)
    assert said(tokenizer, part) == ["a hen<|im_end|>", " ran \n<|im_end|>"]
    assert part.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    built = AutoTokenizer.from_pretrained(place)
    assert part.ids == built.apply_chat_template(TWO, return_dict=False)
