"""--print-config, and docs/settings.md."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from chopjax import cli
from chopjax.runs import settings_reference
from chopjax.runs.settings import PipelineSettings, SweepSettings
from chopjax.runs.settings_reference import settings_of
from chopjax.train import settings
from chopjax.train.config_file import load_config
from chopjax.train.same_run import flat

ROOT = Path(__file__).parents[2]
KINDS = (settings.Settings, PipelineSettings, SweepSettings)
RECIPES = {
    "train": "heal.py",
    "plan": "just_chop_llama2_7b.py",
    "run": "chop_and_heal.py",
    "sweep": "sweep.py",
}


def test_docs_are_up_to_date() -> None:
    made = settings_reference.as_markdown()
    assert (ROOT / "docs" / "settings.md").read_text() == made, (
        "python -m chopjax.runs.settings_reference > docs/settings.md"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_sentence(kind: type) -> None:
    found = settings_of(kind)
    assert [setting.name for setting in found if not setting.sentence] == []
    assert {s.name: s.default for s in found} == flat(dataclasses.asdict(kind()))


def test_sentences_are_read_beside_and_above_a_field() -> None:
    found = settings_reference.sentences(settings.OptimizerSettings)
    assert found["weight_decay"] == "not on norms and biases"
    assert found["spike_factor"].startswith("Leave out an update")
    assert found["spike_factor"].endswith("stops the run.")


@pytest.mark.parametrize(("verb", "recipe"), RECIPES.items())
def test_print_config_shows_what_would_run_and_does_nothing(
    verb: str,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs" / recipe
    words = [verb, "--config", str(file), "--config.model", "a b='c'", "--print-config"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    # Its lines, in a recipe, set the same.
    copy = tmp_path / "copy.py"
    made = {
        "run": "pipeline_settings import default_config",
        "sweep": "sweep_settings import default_config",
    }
    base = made.get(verb, "train.settings import default_config")
    body = "".join(f"    {line}\n" for line in shown.splitlines())
    copy.write_text(
        f"from chopjax.{base} as made\n\n\n"
        f"def get_config():\n    config = made()\n{body}    return config\n"
    )
    expected = load_config(file, ["model=a b='c'"]).to_dict()
    assert load_config(copy).to_dict() == expected
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert [path.name for path in tmp_path.glob("*.*")] == ["copy.py"]


def test_print_config_shows_the_schedule_of_its_own_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = str(ROOT / "configs" / "chop_and_heal.py")
    assert cli.main(["run", "--schedule", "3x200", "--config", recipe, "--print-config"]) == 0
    assert "config.chop.schedule = '3x200'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("batch_size=4", "did you mean data.batch_size or evaluation.batch_size?"),
        ("optimizer.warmup_step=4", "did you mean optimizer.warmup_steps"),
        ("data.frobnicate=4", "--print-config shows them all"),
    ],
)
def test_a_field_that_is_not_there(
    field: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "configs" / "heal.py")
    words = ["train", "--config", recipe, f"--config.{field}", "--print-config"]
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
