"""Everything is in pyproject.toml but this: one file that belongs beside the packages.

chopjax_lm_eval.pth lets lm-evaluation-harness find the model `chopjax`; see
chopjax/score/registration.py. An editable install goes without it.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HOOK = "chopjax_lm_eval.pth"


class BuildWithHook(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(HOOK, str(Path(self.build_lib, HOOK)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib, HOOK))]


setup(cmdclass={"build_py": BuildWithHook})
