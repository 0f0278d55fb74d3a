"""MaxText's training step, compiled by its own train_compile. A part of tpu_compile.py, which runs
it with MaxText's interpreter; nothing of chopjax is imported.

    python maxtext_step.py FOLDER OPTIONS NAME=VALUE ...

OPTIONS: a JSON object of options for the compiler; NAME=VALUE: settings of MaxText's. The compiler
dumps into FOLDER, where `about.json` says first what the step is compiled for: the mesh's axes,
where in the torus its devices are, versions, and the CPU seconds that were spent until then.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import time
from pathlib import Path

PACKAGES = ("maxtext", "jax", "jaxlib", "libtpu", "flax")


def main(folder: Path, options: dict[str, str], settings: list[str]) -> None:
    package = importlib.util.find_spec("maxtext")
    if package is None or package.origin is None:
        sys.exit("there is no MaxText in this environment")
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train_compile

    flags = " ".join(f"--{name}={value}" for name, value in options.items())
    argv = ["train_compile", str(Path(package.origin).parent / "configs/base.yml"), *settings]
    argv.append(f"compile_xla_flags={flags}")
    mesh = train_compile.get_topology_mesh(pyconfig.initialize(argv))
    about = {
        "mesh": dict(mesh.shape),
        "places": [list(device.coords) for device in mesh.devices.ravel()],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cpu_seconds": time.process_time(),
    }
    (folder / "about.json").write_text(json.dumps(about))
    train_compile.main(argv)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
