"""Whole plans, by arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from chopjax.checkpoint.published import CONFIGS as CONFIGS_OF_MODELS
from chopjax.cli import main
from chopjax.errors import UserError
from chopjax.plan import plan as plans
from chopjax.plan.tables import show
from chopjax.plan.topology import GIB, parse
from chopjax.train.config_file import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def without_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)


def plan_of(name: str, topology: str, *overrides: str) -> dict:
    settings, origin, teacher = plans.settings_of(load_config(CONFIGS / name, overrides))
    slices = parse(topology, settings.mesh.slices)
    return plans.make_plan(settings, origin, slices, teacher=teacher)


@pytest.mark.usefixtures("without_libtpu")
class TestArithmetic:
    @pytest.mark.parametrize(
        ("name", "topology", "layers"),
        [
            ("just_chop_llama2_7b.py", "v5p:4x4x4", [32, 16]),
            ("just_chop_llama2_7b.py", "v5e:16x16", [32, 16]),
            ("just_chop_llama2_13b.py", "v5p:4x4x8", [40, 20]),
            ("just_chop_llama2_70b.py", "v5p:4x4x8", [80, 40]),
        ],
    )
    def test_recipes_for_pods(self, name: str, topology: str, layers: list[int]):
        plan = plan_of(name, topology)
        assert not plan["compiled"]
        assert "libtpu is not installed" in plan["not_compiled_because"]
        assert plan["fits"]
        assert [phase["layers"] for phase in plan["phases"]] == layers
        assert plan["phases"][0]["steps"] == 500
        assert plan["token_budget"] == pytest.approx(162.1e9, rel=1e-3)
        assert plan["attention"] == "splash"

    def test_state_by_hand(self):
        """AdamW in float32: three times four bytes a parameter over 16 shards, and gradients."""
        phase = plan_of("just_chop_llama2_7b.py", "v5p:4x4x4")["phases"][0]
        memory = phase["memory"]
        assert phase["parameters"] == 6738415616
        assert memory["parameters"] == phase["parameters"] * 4 / 16
        assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
        assert memory["gradients"] == memory["parameters"]
        assert memory["batch"] == 5 * 4 * 2048 * 2048 / 64

    def test_dimchop_s_scores_are_part_of_the_state(self):
        """Three float32 numbers a weight of the blocks' matrices."""
        plain, scored = (
            plan_of("just_chop_llama2_7b.py", "v5p:4x4x4", *more)["phases"][0]["memory"]
            for more in ((), ("dimchop.final=0.5", "dimchop.end=1000"))
        )
        matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
        more = scored["optimizer"] - plain["optimizer"]
        assert more == pytest.approx(3 * 4 * matrices / 16, abs=8)

    @pytest.mark.parametrize(
        ("model", "topology", "layers"),
        [
            ("llama2_7b", "v5e:1x1", 24),
            ("llama2_13b", "v5e:1x1", 30),
            ("llama2_70b", "v5e:2x4", 60),
            ("mistral_7b", "v5e:1x1", 24),
            ("phi2", "v5e:1x1", 26),
            ("qwen_7b", "v5e:1x1", 27),
            ("qwen_14b", "v5e:1x1", 34),
        ],
    )
    def test_recipes_for_one_accelerator(self, model: str, topology: str, layers: int):
        plan = plan_of(f"deeper_layers_{model}.py", topology)
        (phase,) = plan["phases"]
        assert plan["fits"]
        assert phase["layers"] == layers
        assert phase["steps"] == 5000

    def test_adapters_and_their_base_by_hand(self):
        """Half a byte a number of the blocks' matrices and a scale for 64, the rest in bfloat16."""
        (phase,) = plan_of("deeper_layers_llama2_7b.py", "v5e:1x1")["phases"]
        memory = phase["memory"]
        matrices = 24 * (4 * 4096**2 + 3 * 4096 * 11008)
        rest = 2 * 32000 * 4096 + (2 * 24 + 1) * 4096
        assert memory["frozen"] == matrices // 2 + matrices // 64 * 4 + 2 * rest
        assert memory["parameters"] == 4 * 24 * 3 * 2 * (4096 + 11008)
        assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=64)
        assert memory["total"] < 16e9

    def test_settings_of_their_own_after_the_chop(self):
        """The parent's phase is as it was; advice for the other one names its own settings."""
        name, topology = "just_chop_llama2_7b.py", "v5e:8x8"
        parts = ("compute.microbatches=8", "compute.after_chop.microbatches=0")
        one = plan_of(name, topology, *parts)["phases"]
        own = ("compute.after_chop.remat=none", "compute.after_chop.microbatches=1")
        two = plan_of(name, topology, *parts, *own)["phases"]
        assert [phase["name"] for phase in two] == ["all layers", "after the chop"]
        assert two[0] == one[0]
        after = one[1]["memory"]["activations"], two[1]["memory"]["activations"]
        assert after[1] > 8 * after[0]
        flags = [flag for knob in two[1]["knobs"] for flag in knob["flags"]]
        assert any(flag.startswith("--config.compute.after_chop.") for flag in flags)
        assert not any(flag.startswith("--config.compute.microbatches") for flag in flags)
        with pytest.raises(UserError, match="64 shards x 64 microbatches"):
            plan_of(name, topology, "compute.after_chop.microbatches=64")

    def test_the_chunk_is_that_of_an_accelerator(self):
        """And not of the processor that plans."""

        def chunks(*overrides: str) -> list[int]:
            config = load_config(CONFIGS / "just_chop_llama2_7b.py", overrides)
            settings, origin, _ = plans.settings_of(config)
            phases = plans.outline(settings, origin, parse("v5p:4x4x4"), 1000)[3]
            return [phase.settings.compute.loss_chunk for phase in phases]

        assert chunks() == [2048, 2048]
        assert chunks("compute.after_chop.loss_chunk=64") == [2048, 64]
        assert chunks("compute.loss_chunk=256") == [256, 256]

    def test_days(self):
        plan = plan_of("just_chop_llama2_7b.py", "v5p:4x4x4")
        seconds = sum(phase["step_seconds"] * phase["steps"] for phase in plan["phases"])
        assert plan["days"] == pytest.approx(seconds / 86400)
        assert plan["chip_hours"] == pytest.approx(seconds / 3600 * 64)

    def test_a_teacher_by_hand(self):
        """In bfloat16 over 16 shards, not among what is saved; its forward pass a third of what
        training it would take. It may be another model than the parent."""
        same = "compute.after_chop.microbatches=0"  # what a teacher leaves no room for
        plain = plan_of("just_chop_llama2_7b.py", "v5p:4x4x4", same)["phases"]
        taught = plan_of("just_chop_llama2_7b_taught.py", "v5p:4x4x4")["phases"]
        whole = plain[0]
        assert [phase["layers"] for phase in taught] == [32, 16]
        for phase, without in zip(taught, plain, strict=True):
            memory = phase["memory"]
            assert memory["frozen"] == whole["parameters"] * 2 / 16
            assert without["memory"]["frozen"] == 0
            assert memory["optimizer"] == without["memory"]["optimizer"]
            more = phase["flops_per_token"] - without["flops_per_token"]
            assert more == whole["flops_per_token"] / 3
            assert memory["activations"] > without["memory"]["activations"]
        other = plan_of(
            "distill.py", "v5p:4x4x8", "model=meta-llama/Llama-2-7b-hf", "data.batch_size=512",
            "teacher.model=meta-llama/Llama-2-13b-hf",
        )  # fmt: skip
        (phase,) = other["phases"]
        assert phase["memory"]["frozen"] == pytest.approx(13.016e9 * 4, rel=1e-3)
        with pytest.raises(UserError, match="no chop is recorded"):
            plan_of("distill.py", "v5p:4x4x8", "model=meta-llama/Llama-2-7b-hf")

    def test_what_would_make_it_fit(self):
        plan = plan_of(
            "just_chop_llama2_7b.py", "v5e:8x8", "compute.remat=none", "chop.after_steps=0"
        )
        (phase,) = plan["phases"]
        assert not plan["fits"]
        assert phase["memory"]["total"] > phase["memory"]["limit"] == int(15.75 * GIB)
        flag = "--config.compute.after_chop.remat=full"  # where the recipe has settings of its own
        assert any(flag in knob["flags"] for knob in phase["knobs"])
        # What cannot run takes no time.
        assert plan["days"] is plan["chip_hours"] is plan["tokens_per_day"] is None
        assert phase["mfu"] is phase["step_seconds"] is phase["tokens_per_second"] is None

    @pytest.mark.parametrize("columns", ["40", "200"])
    def test_what_does_not_fit_ends_with_that(
        self, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, columns: str
    ):
        monkeypatch.setenv("COLUMNS", columns)
        recipe = str(CONFIGS / "just_chop_llama2_7b.py")
        arguments = ["plan", "--config", recipe, "--topology", "v5litepod-4"]
        assert main(arguments) == 1
        shown = capsys.readouterr().out
        last = shown.rstrip("\n").splitlines()[-1]
        assert last.startswith("It does not fit: ")
        assert "of 15.75 GiB on a v5e chip (all layers)" in last
        for word in ("MFU", "days", "tokens a day", "tokens per second"):
            assert word not in shown
        assert main([*arguments, "--json"]) == 1
        assert not json.loads(capsys.readouterr().out)["fits"]

    @pytest.mark.parametrize("named", ["{folder}", "{folder}/config.json"])
    def test_config_json_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture, named: str):
        """Without weights, tokenizer or store."""
        raw = CONFIGS_OF_MODELS["meta-llama/Llama-2-7b-hf"] | {"num_hidden_layers": 6}
        raw |= {"id2label": {"0": "a.b"}, "pad_token_id": None}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        model = named.format(folder=tmp_path)
        recipe = str(CONFIGS / "heal.py")
        arguments = ["plan", "--config", recipe, f"--config.model={model}", "--json"]
        assert main([*arguments, "--topology", "v5p-8"]) == 0
        (phase,) = json.loads(capsys.readouterr().out)["phases"]
        assert phase["layers"] == 6
        # A layer by hand: four projections, three matrices of the feed-forward, two norms.
        layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
        assert phase["parameters"] == 6 * layer + 2 * 32000 * 4096 + 4096

    def test_loops_of_unknown_length_are_told(self, tiny: Path, capsys: pytest.CaptureFixture):
        settings, origin, _ = plans.settings_of(load_config(tiny))
        plan = plans.make_plan(settings, origin, parse("v5e:2x2"))
        show(plan)
        assert "unknown length" not in capsys.readouterr().out
        plan["phases"][0]["unknown_loops"] = 2
        show(plan)
        assert "Loops of unknown length in the program: 2." in capsys.readouterr().out

    def test_unknown_kernels_are_told(self, tiny: Path, capsys: pytest.CaptureFixture):
        settings, origin, _ = plans.settings_of(load_config(tiny))
        plan = plans.make_plan(settings, origin, parse("v5e:2x2"))
        show(plan)
        assert "kernels" not in capsys.readouterr().out
        plan["phases"][0]["unknown_kernels"] = ["one", "other"]
        show(plan)
        assert "Unknown kernels in the program: one, other." in capsys.readouterr().out

    def test_both_names_of_a_slice(self):
        by_shape = plan_of("just_chop_llama2_7b.py", "v5p:4x4x4")
        assert plan_of("just_chop_llama2_7b.py", "v5p-128") == by_shape
        assert by_shape["accelerator_type"] == "v5p-128"

    def test_the_pipeline_s_recipe(self):
        overrides = ["model=meta-llama/Llama-2-7b-hf", "heal.data.batch_size=64"]
        plan = plan_of("chop_and_heal.py", "v5e:4x4", *overrides)
        assert plan["phases"][0]["layers"] == 16

    def test_batch_that_does_not_divide(self):
        with pytest.raises(UserError, match="not a multiple of 256 shards"):
            plan_of("just_chop_llama2_7b.py", "v5e:16x16", "data.batch_size=100")

    def test_command(self, tiny: Path, capsys: pytest.CaptureFixture):
        arguments = ["plan", "--config", str(tiny), "--topology", "v5e:2x2"]
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["chips"] == 4
        assert main([*arguments, "--tokens", "1e9"]) == 0
        shown = capsys.readouterr().out
        assert "Not compiled: libtpu is not installed (pip install 'chopjax[tpu]')" in shown
        assert "It fits" in shown
        assert "1.00 billion" in shown

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--topology", "v5p:4x4"], "has 3 sides"),
            (["--topology", "v5e:2x2", "--tokens", "0"], "positive"),
            (["--topology", "v5e:2x2", "--config.mesh.fsdp=3"], "does not make 4"),
            (["--topology", "v5e:2x2", "--config.mesh.fdsp=4"], "mesh.fsdp"),
            (["--topology", "v5e:2x2", "--config.data.sequence_length=8192"], "4096 positions"),
            (
                ["--topology", "v5e:2x2", "--config.scratch={}", "--config.model=/no/such"],
                "/no/such: no such folder",
            ),
            (
                ["--topology", "v5e:2x2", "--config.scratch={}", "--config.model=/"],
                "no config.json",
            ),
        ],
    )
    def test_mistakes(
        self, tiny: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
    ):
        assert main(["plan", "--config", str(tiny), *arguments]) == 2
        assert message in capsys.readouterr().err
