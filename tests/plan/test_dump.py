"""What is read of the TPU compiler's dumps, as libtpu 0.0.52 writes them."""

from pathlib import Path

import pytest

from chopjax.plan.dump import CODE_RESERVE, LAID_OUT, LAYOUT, Dump, Memory, too_large

LAYOUT_TEXT = """
BufferAssignment:
allocation 0: size 4096, parameter 0, shape |f32[1024]| at ShapeIndex {}:
 value: <12 x @0> (size=4096,offset=0): f32[1024]
allocation 1: size 512, output shape is |f32[128]|, maybe-live-out:
allocation 2: size 77, color 1, preallocated-temp:
allocation 3: size 33, thread-local:
allocation 4: size 4, constant:
allocation 5: size 1048576, preallocated-temp:
"""


def write(folder: Path, step: str, which: str, text: str) -> None:
    (folder / f"module_0001.{step}.cl_1.{which}.txt").write_text(text)


def test_memory_is_there_when_it_is_laid_out(tmp_path: Path) -> None:
    dump = Dump(tmp_path)
    write(tmp_path, "jit_train_step", LAYOUT, LAYOUT_TEXT)
    write(tmp_path, "jit_other", LAID_OUT, "")
    assert dump.memory() is None
    write(tmp_path, "jit_train_step", LAID_OUT, "")
    assert dump.memory() == Memory(4096, 512, 2**20, CODE_RESERVE)
    spelled_out = Dump(tmp_path, unrolled=40).memory()
    assert spelled_out is not None
    assert spelled_out.code == 40 * 2**24 > CODE_RESERVE


@pytest.mark.parametrize(
    ("message", "temporaries"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU ran out. Used 20.1G of 15.75G hbm. Exceeded", None),
        ("RESOURCE_EXHAUSTED: The size of temporaries (12.50G) exceeds available HBM", 25 * 2**29),
        ("a log\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: temporaries (1.00M)\n", 2**20),
    ],
)
def test_what_does_not_fit(message: str, temporaries: int | None) -> None:
    refusal = too_large(message, 2.0)
    assert refusal is not None
    assert refusal.temporaries == temporaries
    assert refusal.message.startswith("RESOURCE_EXHAUSTED: ")
    assert too_large("INVALID_ARGUMENT: no such option", 2.0) is None
