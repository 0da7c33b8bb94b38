"""What pyproject.toml cannot say: the wheel carries configs and tools as ``mobileone_ext/.mim``, as OpenMMLab's do."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MIM = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Copies them at build time, so that the checkout holds them once; an editable install uses the checkout's."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._mim_files():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def get_outputs(self, include_bytecode=True):
        files = [] if self.editable_mode else [str(target) for _, target in self._mim_files()]
        return super().get_outputs(include_bytecode) + files

    def _mim_files(self):
        root = Path(__file__).parent
        found = [path for name in MIM for path in (root / name, *(root / name).rglob('*'))]
        files = [path for path in found if path.is_file() and '__pycache__' not in path.parts]
        target = Path(self.build_lib, 'mobileone_ext', '.mim')
        return [(path, target / path.relative_to(root)) for path in files]


setup(cmdclass={'build_py': BuildWithMim})
