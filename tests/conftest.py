"""Fixtures that several rooms use. Data that is not in the repository skips when absent."""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
MOST_KEPT = 10**9  # bytes


def kept_programs() -> Path:
    """A folder of what earlier runs compiled, beside what pytest keeps itself.

    jax finds a program by its text, its flags and jax's version; what is found there takes a fifth
    of the time. Every change of a program adds one, so that beyond MOST_KEPT all go. One that a
    killed process cut off would be compiled every time, with a warning: `make clean` helps.
    """
    machine = platform.machine()
    with contextlib.suppress(OSError):  # other systems than Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        machine = next((line for line in lines if line.startswith(("flags", "Features"))), machine)
    # Machine code is for one kind of processor.
    folder = ROOT / ".pytest_cache/compiled" / hashlib.sha256(machine.encode()).hexdigest()[:8]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a checkout that may only be read
        folder = Path(tempfile.mkdtemp(prefix="chopjax-tests-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    with contextlib.suppress(FileNotFoundError):  # another run does the same
        files = list(folder.iterdir())
        if sum(file.stat().st_size for file in files) > MOST_KEPT:
            for file in files:
                file.unlink(missing_ok=True)
    return folder


# On a busy machine every example takes as long as it likes.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch's threads wait for each other by spinning: over models as small as these, half of all time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# bitsandbytes would have a C++ compiler make each of its functions.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

# Compiling takes longer than running here, so compile little and nothing twice. jax reads these
# when it is imported, here, in xdist's workers and in the processes that tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "True"
# MLIR's emitters compile every fusion for itself and take three quarters of a compilation; a module
# in 32 parts is for many cores.
flags = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept_programs())

# Imports and tracing make many small objects: looking through all of them again and again for
# garbage is a tenth of the suite's time.
gc.set_threshold(100_000, 20, 100)

# A shell that starts the tests in the background has Ctrl-C ignored, and every process started
# from here would inherit that: the tests of Ctrl-C need the usual.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("CHOPJAX_SHARED", ROOT.parent / "shared"))

# Files with tests that take long one by one. They come first: what is left for the end, when one
# worker waits for the other, is short.
LONG = """
train/test_processes.py launch/test_ending.py score/test_processes.py test_faults.py
test_signals.py test_accelerator.py score/test_run.py train/test_kills.py train/test_step.py
test_foreign_files.py test_python_page.py runs/test_pipeline.py commands/test_hub_models.py
plan/test_compile.py classify/test_learner.py
""".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        metavar="K/N",
        help="of the tests marked thorough, which otherwise are left out, the Kth of N parts",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Which tests run, and in which order. Those marked thorough do where their file is named."""
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    if part := config.getoption("--thorough"):
        number, parts = map(int, part.split("/"))
        left_out = set(items) - set(thorough[number - 1 :: parts])
    else:
        named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
        left_out = {item for item in thorough if item.path not in named}
    chosen = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONG)}
    items[:] = sorted(chosen, key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """What is imported by now stays."""
    gc.freeze()


@pytest.fixture(scope="session")
def lowered() -> list[str]:
    """Grows with every program that jax lowers."""
    import jax

    seen: list[str] = []
    lowering = "/jax/core/compile/jaxpr_to_mlir_module_duration"

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == lowering:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


@pytest.fixture(autouse=True)
def few_programs(lowered: list[str]) -> Iterator[None]:
    """jax keeps what it lowered, and every program takes longer to lower the more it keeps: 10 ms
    the first, a quarter of a second the two thousandth."""
    yield
    if len(lowered) > 300:
        import jax

        jax.clear_caches()
        lowered.clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints, corpora and benchmarks beside the repository."""
    if not (SHARED / "models").is_dir():
        pytest.skip("no shared/ folder with real checkpoints beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def mix_llama(shared: Path) -> Path:
    """A trained 12-layer Llama checkpoint, tied, newer spelling of config.json."""
    return shared / "models" / "mix-llama-12l"


@pytest.fixture(scope="session")
def tinystories(shared: Path) -> Path:
    """A trained 2-layer Llama checkpoint whose tied table stands under the head's name."""
    return shared / "models" / "tinystories-656k"


@pytest.fixture
def libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TPUs' compiler in this process, which it would end over flags for processors: it does not
    know them."""
    pytest.importorskip("libtpu")
    from chopjax.plan.topology import prepare_environment

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    prepare_environment()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 224 kB, where mounting one is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=224k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
