"""Methods by name, and how each trains."""

from __future__ import annotations

import dataclasses

import pytest
from ml_collections import ConfigDict

from chopjax.errors import UserError
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.runs.methods import CHOPPED, KNOWN, Method, heal_settings, parse_method
from chopjax.runs.settings import heal_of, methods_of, read_sweep, sweep_config
from chopjax.runs.settings_reference import as_recipe
from chopjax.train.config_file import override
from chopjax.train.settings import Settings, TeacherSettings


def test_a_name_is_what_it_was_read_from() -> None:
    assert [parse_method(name).name for name in KNOWN] == list(KNOWN)
    assert parse_method("repair") == Method(True, "")
    assert parse_method("repair+full") == Method(True, "full")
    assert CHOPPED.name == ""


@pytest.mark.parametrize(
    ("name", "hint"), [("scrach", "did you mean scratch?"), ("repair+scratch", "not one of")]
)
def test_a_method_that_does_not_exist(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="is not one of") as refused:
        parse_method(name)
    assert hint in str(refused.value)


def config(**changes: object) -> ConfigDict:
    """Of a sweep that could begin."""
    made = sweep_config()
    made.model, made.text.train, made.text.held_out = "m", "t.txt", "h.txt"
    for name, value in changes.items():
        override(made, f"{name}={value}")
    return made


def test_a_method_has_the_settings_of_heal_but_for_its_own() -> None:
    made = config(methods="full,scratch")
    made.heal.optimizer.peak_learning_rate = 1e-3
    made.heal.optimizer.warmup_steps = 7
    made.scratch.optimizer.peak_learning_rate = 5e-3  # as a recipe says it
    override(made, "scratch.optimizer.name=adamw")  # as the command line does
    settings = read_sweep(made)
    full, scratch = (heal_of(settings, method) for method in methods_of(settings))
    assert full == settings.heal
    assert scratch == dataclasses.replace(
        settings.heal,
        from_scratch=True,
        optimizer=dataclasses.replace(
            settings.heal.optimizer, peak_learning_rate=5e-3, name="adamw"
        ),
    )
    shown = as_recipe(made).splitlines()
    assert "config.scratch.optimizer.peak_learning_rate = 0.005" in shown
    assert not [line for line in shown if "None" in line]


def test_adapters_are_those_of_heal_on_the_methods_base() -> None:
    made = config(methods="full,lora,qlora,qlora-int8,scratch")
    made.heal.adapter.rank, made.heal.adapter.targets = 8, "attention"
    made.qlora.adapter.rank = 4
    settings = read_sweep(made)
    found = [heal_of(settings, method).adapter for method in methods_of(settings)]
    assert [(each.rank, each.base) for each in found] == [
        (0, "float"), (8, "float"), (4, "nf4"), (4, "int8"), (0, "float"),
    ]  # fmt: skip
    assert found[0] == found[-1] == AdapterSettings()
    assert {each.targets for each in found[1:-1]} == {"attention"}
    # Without methods `heal` says all.
    healed = config(healed=True)
    healed.heal.adapter.rank = 8
    settings = read_sweep(healed)
    assert heal_of(settings, *methods_of(settings)) == settings.heal


def test_a_teacher_is_the_parent_unless_another_is_given() -> None:
    made = config(methods="full,distill")
    made.heal.teacher.hidden = 0.5
    made.distill.teacher.temperature = 2.0
    settings = read_sweep(made)
    full, distill = (heal_of(settings, method).teacher for method in methods_of(settings))
    assert full == TeacherSettings()
    assert distill == TeacherSettings(model="parent", hidden=0.5, temperature=2.0)
    made.heal.teacher.model = "somewhere"
    settings = read_sweep(made)
    assert heal_of(settings, parse_method("distill")).teacher.model == "somewhere"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"optimizer": {"rate": 1}}, "scratch.optimizer.rate: no such field"),
        ({"optimizer": {"name": "lino"}}, "scratch.optimizer.name: 'lino' is not one of"),
        ({"data": 3}, "scratch.data: 3 is not"),
        ({"data": {"sequence_length": 9}}, "scratch.data.sequence_length: the same for all"),
    ],
)
def test_overrides_that_are_no_settings(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        heal_settings(Settings(), parse_method("scratch"), {"scratch": overrides})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"healed": True}, ["full"]),
        ({"repair": "linear"}, ["repair"]),
        ({"repair": "linear", "healed": True}, ["repair", "full", "repair+full"]),
        ({"repair": "linear", "methods": "scratch, full,scratch"}, ["scratch", "full"]),
    ],
)
def test_which_methods_a_sweep_has(changes: dict[str, object], names: list[str]) -> None:
    assert [method.name for method in methods_of(read_sweep(config(**changes)))] == names


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": "full", "healed": True}, "methods and healed: give one of them"),
        ({"methods": "repair+full"}, "repair: methods has one; say of which kind, linear"),
        ({"methods": "repair", "repair": "linear", "budget": "1e9"}, "budget: nothing is trained"),
        ({"budget": "1e9"}, "budget: nothing is trained; give methods, of repair, full"),
        ({"methods": "ful", "budget": "soon"}, "budget: 'soon' is neither FLOPs"),
        ({"methods": "full", "text.train": ""}, "text.train"),
        (
            {"healed": True, "heal.compute.after_chop.microbatches": 2},
            "full: compute.after_chop: nothing is trained before the chop",
        ),
        (
            {"methods": "distill", "distill.compute.after_chop.remat": "full"},
            "distill: compute.after_chop: nothing is trained before the chop",
        ),
        ({"methods": "lora"}, "lora: adapter.rank is 0; give heal.adapter.rank, or lora.adapter"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_sweep(config(**changes))
    assert said in str(refused.value)
