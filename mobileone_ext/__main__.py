"""The command ``mobileone``: ``mobileone train CONFIG`` runs tools/train.py, wherever the package is installed.

``python -m mobileone_ext train CONFIG`` does the same.
"""

import ast
import importlib.util
import sys
from pathlib import Path

from . import __version__, cli
from .files import home
from .text import hint

USAGE = 'usage: mobileone COMMAND [options]; mobileone COMMAND --help says more'


def main() -> None:
    """Run the tool that the first argument names, with the others."""
    cli.run(_main)


def _main() -> int:
    tools = {path.stem: path for path in sorted((home() / 'tools').glob('*.py'))}
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(f'{USAGE}\n')
        for tool, path in tools.items():
            print(f'  {tool:20} {_summary(path)}')
        print(f'\nconfigs: {home() / "configs"}')
        return 0
    if name == '--version':
        print(f'mobileone_ext {__version__}')
        return 0
    if name not in tools:
        raise ValueError(f'mobileone {name}: no such command{hint(name, tools)}')
    sys.argv = [f'mobileone {name}', *arguments]
    sys.path.insert(0, str(tools[name].parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location(f'mobileone_{name}', tools[name])
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main() or 0


def _summary(path: Path) -> str:
    """The first line of a tool's docstring, without its usage."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return text.partition('\n')[0].partition(': ``')[0].rstrip('.')


if __name__ == '__main__':
    main()
