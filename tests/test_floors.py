"""Imports of the package, as CONTRIBUTING.md lists its floors: downward, in no circle."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'mobileone_ext'
MODULES = {path: path.relative_to(ROOT) for path in sorted(PACKAGE.rglob('*.py'))}


def module_file(folder: Path, names: list[str]) -> Path | None:
    """The file of the module ``names`` below ``folder``."""
    place = folder.joinpath(*names)
    return next((path for path in (place.with_suffix('.py'), place / '__init__.py') if path in MODULES), None)


@cache
def imported(path: Path) -> frozenset[Path]:
    """The modules of the package that the one at ``path`` imports anywhere; for a type checker alone does not count."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    unseen = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            parts = [alias.name.split('.') for alias in node.names]
            found.update(module_file(ROOT, names) for names in parts if names[0] == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom) and id(node) not in unseen:
            base, names = path.parents[node.level - 1], node.module.split('.') if node.module else []
            if not node.level:
                base = ROOT
            for alias in node.names:
                found.add(module_file(base, [*names, alias.name]) or module_file(base, names))
    return frozenset(found - {None, path})


@cache
def floors() -> dict[Path, tuple[int, str]]:
    """Module -> its row in the list, from above, and the entry of that row that it belongs to."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    rows = re.search(r'Imports of the package.*?\n\| \| \|\n\|-.*?\n(.*?)\n\n', text, re.S)
    entries = {
        entry: number
        for number, row in enumerate(rows[1].splitlines())
        for entry in re.findall(r'`([^`]+)`', row.split('|')[1])
    }
    found = {}
    for path, name in MODULES.items():
        for entry in {entry for entry in entries if Path(entry) in (name, *name.parents)}:
            found[path] = entries[entry], entry
    return found


def test_every_module_has_a_floor():
    assert not [name.as_posix() for path, name in MODULES.items() if path not in floors()]


def test_imports_point_downward():
    upward = []
    for path, (floor, entry) in floors().items():
        for other in imported(path) & floors().keys():
            below, place = floors()[other]
            if place != entry and below <= floor:
                upward.append(f'{MODULES[path].as_posix()} imports {MODULES[other].as_posix()}')
    assert not upward


def test_imports_make_no_circle():
    try:
        TopologicalSorter({path: imported(path) for path in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(' imports '.join(MODULES[path].as_posix() for path in reversed(error.args[1])))


def test_the_package_knows_nothing_of_what_is_beside_it():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {'research', 'benchmarks', 'tools', 'tests'} & {name.partition('.')[0] for name in names}, path


def test_the_reader_of_imports_sees_them_all():
    """Known ones: relative, absolute, of a package, inside a function."""
    seen = {MODULES[path].as_posix() for path in imported(PACKAGE / 'cli.py')}
    assert {'mobileone_ext/config/__init__.py', 'mobileone_ext/text.py'} <= seen  # the first inside a function
    assert PACKAGE / '__init__.py' in imported(PACKAGE / 'provenance.py')
    assert PACKAGE / 'recipe/__init__.py' in imported(PACKAGE / 'engine/runner.py')
    assert sum(len(imported(path)) for path in MODULES) > 300
