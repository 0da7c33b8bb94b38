"""The package as people install it: what it declares and holds, the command, and a run away from the checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT, data_options, only_line

from mobileone_ext import files

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
SOURCES = ('mobileone_ext', 'configs', 'tools')
TOOLS = sorted(path.stem for path in (ROOT / 'tools').glob('*.py'))


def imports(folder):
    """Names of the modules that the Python files below ``folder`` import, ours and Python's own left out."""
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            else:
                found = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            yield from (name.partition('.')[0] for name in found)


def declared(requirements):
    names = (re.match(r'[\w.-]+', requirement)[0] for requirement in requirements)
    return {re.sub('[-_.]+', '-', name).lower() for name in names}


def test_what_is_imported_is_declared():
    forks = {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv-lite', 'onedl-mmpretrain': 'mmpretrain'}
    known = declared(PROJECT['dependencies'] + sum(PROJECT['optional-dependencies'].values(), []))
    installed, ours = packages_distributions(), {'mobileone_ext', 'benchmarks', 'research'}
    inside = {'_tools': 'mnn'}  # import names that tell nothing
    missing = {}
    for name in {name for folder in SOURCES for name in imports(ROOT / folder)} - set(sys.stdlib_module_names) - ours:
        # A package that isn't installed here has, as most do, the name that is imported.
        for distribution in installed.get(name, [inside.get(name, name)]):
            normal = re.sub('[-_.]+', '-', distribution).lower()
            if forks.get(normal, normal) not in known:
                missing[name] = distribution
    assert not missing


def test_nothing_imports_pkg_resources():
    assert 'pkg_resources' not in {
        name for folder in (*SOURCES, 'research', 'tests') for name in imports(ROOT / folder)
    }


def test_the_versions_agree():
    assert PROJECT['requires-python'] == '>=3.11'
    ruff = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['ruff']
    assert ruff['target-version'] == 'py311'


def command(capsys, monkeypatch, *arguments):
    from mobileone_ext.__main__ import main

    monkeypatch.setattr(sys, 'argv', ['mobileone', *arguments])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr()
    return exit_.value.code, printed.out + printed.err


def test_the_command_lists_the_tools(capsys, monkeypatch):
    code, printed = command(capsys, monkeypatch)
    assert code == 0 and [line.split()[0] for line in printed.splitlines() if line.startswith('  ')] == TOOLS


@pytest.mark.parametrize('tool', TOOLS)
def test_the_command_runs_each_tool(capsys, monkeypatch, tmp_path, tool):
    monkeypatch.chdir(tmp_path)
    code, printed = command(capsys, monkeypatch, tool, '--help')
    assert code == 0 and printed.startswith(f'usage: mobileone {tool} ')


def test_an_unknown_command_is_one_line(capsys, monkeypatch):
    code, printed = command(capsys, monkeypatch, 'trian')
    assert code == 1 and only_line(printed) == "error: mobileone trian: no such command; did you mean 'train'?"


def test_our_configs_are_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.installed('configs/mobileone_s0_8xb32.py') == str(files.home() / 'configs' / 'mobileone_s0_8xb32.py')
    Path('configs').mkdir()
    Path('configs/mobileone_s0_8xb32.py').touch()
    assert files.installed('configs/mobileone_s0_8xb32.py') == 'configs/mobileone_s0_8xb32.py'
    assert files.installed('configs') == 'configs' and files.installed('absent.py') == 'absent.py'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built by pip from a copy of the checkout without what git ignores."""
    folder = tmp_path_factory.mktemp('wheel')
    ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / 'source' / name, ignore=ignore)
    for name in ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, folder / 'source' / name)
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-index']
    subprocess.run([*pip, '--wheel-dir', folder, folder / 'source'], check=True)
    (found,) = folder.glob('*.whl')
    return found


def test_the_wheel_holds_code_configs_and_tools(wheel):
    names = set(ZipFile(wheel).namelist())
    for name in SOURCES:
        prefix = 'mobileone_ext' if name == 'mobileone_ext' else f'mobileone_ext/.mim/{name}'
        for path in (ROOT / name).rglob('*'):
            if path.is_file() and path.suffix in ('.py', '.sh', '.typed') and '__pycache__' not in path.parts:
                assert f'{prefix}/{path.relative_to(ROOT / name).as_posix()}' in names
    assert 'mobileone_ext/.mim/model-index.yml' in names
    (metadata,) = (name for name in names if name.endswith('.dist-info/METADATA'))
    text = ZipFile(wheel).read(metadata).decode()
    assert 'Requires-Python: >=3.11' in text and 'License-Expression: Apache-2.0' in text
    assert {name.split('/')[0] for name in names} == {'mobileone_ext', metadata.split('/')[0]}


@pytest.mark.slow
def test_an_installed_wheel_trains_fuses_and_predicts_away_from_the_checkout(wheel, digits, tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'], check=True)
    home = sysconfig.get_paths('venv', vars=dict(base=str(tmp_path / 'venv')))
    python = Path(home['scripts'], 'python')
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index']
    subprocess.run([*pip, wheel], check=True)
    # Paths in a .pth file lend their packages, and not what their own .pth files name: an editable install of ours.
    lender = Path(sysconfig.get_paths()['purelib'])
    Path(home['purelib'], 'borrowed.pth').write_text(f'{lender}\n')
    if (lender / 'distutils-precedence.pth').exists():  # setuptools' stand-in for what Python 3.12 no longer has
        shutil.copy(lender / 'distutils-precedence.pth', home['purelib'])
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    environment['OMP_NUM_THREADS'] = '1'

    def mobileone(*arguments):
        words = [Path(home['scripts'], 'mobileone'), *map(str, arguments)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = 'import mobileone_ext, pathlib; print(pathlib.Path(mobileone_ext.__file__).resolve())'
    found = subprocess.run([python, '-c', where], cwd=tmp_path, env=environment, text=True, capture_output=True).stdout
    assert tmp_path in Path(found.strip()).parents

    config, options = 'configs/mobileone_tiny_digits.py', ['--cfg-options', *data_options(digits)]
    mobileone('train', config, '--work-dir', 'run', '--seed', 0, *options, 'train_cfg.max_epochs=1')
    printed = mobileone('reparam', config, 'run/epoch_1.pth', 'fused.pth', *options)
    assert '0 of 360 predictions changed' in printed
    photo = next((digits / 'val').rglob('*.png'))
    assert str(photo) in mobileone('predict', config, 'fused.pth', photo, '--top', 3, *options)
    listed = mobileone('ablate', 'configs/ablations/branches.py', '--base', config, '--seeds', 0, '--dry-run')
    assert 'seed 0: to run' in listed
    assert f'configs: {tmp_path}' in mobileone()
