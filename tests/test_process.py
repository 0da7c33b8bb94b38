"""The process that a tool runs in: its console and its user; and importing the package, which changes nothing in it."""

import getpass
import io
import os
import pwd
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from mobileone_ext import cli
from mobileone_ext.text import make_console


@pytest.fixture
def console(monkeypatch):
    """``console(encoding)`` gives stdout and stderr that encoding, and returns what is written there, as bytes."""

    def replaced(encoding):
        written = io.BytesIO()
        for name in ('stdout', 'stderr'):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, write_through=True))
        return written

    return replaced


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'latin-1', 'shift_jis', 'utf-8'])
def test_a_console_replaces_what_it_cannot_show(console, encoding, tmp_path):
    from rich.table import Table

    written = console(encoding)

    def main():
        table = Table('class')
        table.add_row('猫 é ☃')
        make_console(width=60).print(table)
        print('猫 é ☃')
        raise ValueError('猫 é ☃: no such class')

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 1
    shown = '猫 é ☃'.encode(encoding, 'backslashreplace')
    lines = written.getvalue().splitlines()
    assert sum(shown in line for line in lines) == 3 and lines[-1] == b'error: ' + shown + b': no such class'


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user whom the password file doesn't know, without a home."""

    def unknown(uid):
        raise KeyError(f'getpwuid(): uid not found: {uid}')

    for name in ('HOME', 'USER', 'LOGNAME', 'LNAME', 'USERNAME'):
        monkeypatch.setenv(name, 'to be removed again')
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))


def test_a_user_without_home_and_name_gets_both(nobody, monkeypatch, tmp_path):
    assert os.path.expanduser('~') == '~'
    found = []
    with pytest.raises(SystemExit):
        cli.run(lambda: found.append(Path.home()))
    (home,) = found
    assert home.parent == tmp_path and home.stat().st_mode & 0o777 == 0o700 and os.access(home, os.W_OK)
    assert getpass.getuser() == str(os.getuid())
    monkeypatch.delenv('HOME')
    cli.give_home()
    assert Path.home() == home  # the next time as well: its caches are there


@pytest.mark.parametrize('kind', ['of another user', 'a link', 'a file'])
def test_a_home_is_not_somebody_elses(nobody, monkeypatch, tmp_path, kind):
    foreign = tmp_path / f'mobileone_{os.getuid()}'
    if kind == 'of another user':
        foreign = foreign.with_name('mobileone_4000000000')
        foreign.mkdir()
        monkeypatch.setattr(os, 'getuid', lambda: 4000000000)
    elif kind == 'a link':
        (tmp_path / 'elsewhere').mkdir()
        foreign.symlink_to(tmp_path / 'elsewhere')
    else:
        foreign.touch()
    cli.give_home()
    assert Path.home() != foreign and Path.home().parent == tmp_path


@pytest.mark.parametrize('home', ['', 'a/b'])
def test_a_home_that_is_no_place_is_another(nobody, monkeypatch, tmp_path, home):
    monkeypatch.setenv('HOME', home)
    cli.give_home()
    assert Path.home().parent == tmp_path


def test_matplotlib_has_a_place_where_the_home_takes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', '/nonexistent')
    monkeypatch.setenv('MPLCONFIGDIR', 'to be removed again')
    monkeypatch.delenv('MPLCONFIGDIR')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    cli.give_home()
    assert os.environ['HOME'] == '/nonexistent' and Path(os.environ['MPLCONFIGDIR']).parent == tmp_path


def test_a_home_stays(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    cli.give_home()
    assert os.environ['HOME'] == str(tmp_path)


def absent():
    import nowhere_to_be_found  # noqa: F401


def broken():
    raise ImportError('libGL.so.1: cannot open shared object file', name='cv2')


def fails(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    'main, line',
    [
        (absent, "No module named 'nowhere_to_be_found': the package is not installed; pip install"),
        (broken, 'cv2 is installed and cannot be imported: libGL.so.1: cannot open shared object file'),
        (fails(MemoryError('Unable to allocate 3 TiB')), 'the memory does not suffice: Unable to allocate 3 TiB'),
    ],
)
def test_what_the_machine_lacks_is_one_line(capsys, main, line):
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error.startswith(f'error: {line}') and error.count('\n') == 1


@pytest.mark.parametrize(
    'error',
    [
        ModuleNotFoundError("No module named 'mobileone_ext.nothing'", name='mobileone_ext.nothing'),
        ImportError("cannot import name 'nothing' from 'mobileone_ext.text'", name='mobileone_ext.text'),
        KeyError('a'),
        RecursionError('a'),
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(fails(error))


def test_the_line_about_extras_names_them_all():
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    line = cli.outside_cause(ModuleNotFoundError("No module named 'x'", name='x'))
    assert all(extra in line for extra in extras if extra != 'test')


def test_a_process_that_the_others_have_left_waits_for_who_knows_more(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(cli.time, 'sleep', waited.append)

    def main():
        raise RuntimeError(
            '[/x/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer. Hm'
        )

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 1 and waited == [cli._SECONDS_FOR_THE_FIRST]
    assert capsys.readouterr().err.startswith('error: another process of the run has ended; what was saved is whole')


# What others have set: before and after everything of ours is imported. What we build on is there by then.
PURE = """
import importlib, logging, os, pkgutil, random, signal, sys, warnings
import cv2, matplotlib, mmcv, mmengine.analysis, mmengine.fileio, mmpretrain.apis, numpy, PIL.Image, setuptools, torch
import torchvision, types, yaml

def state():
    loggers = {name: logger for name, logger in logging.root.manager.loggerDict.items()}
    return {
        'numpy': {name: id(value) for name, value in vars(numpy).items() if not isinstance(value, types.ModuleType)},
        'readers of mmengine': {key: type(value) for key, value in mmengine.fileio.io.file_handlers.items()},
        'backends of mmengine': sorted(mmengine.fileio.io.backends),
        'readers of Pillow': (sorted(PIL.Image.OPEN), sorted(PIL.Image.EXTENSION)),
        'warnings': [repr(entry) for entry in warnings.filters],
        'environment': dict(os.environ),
        'path': list(sys.path),
        'hooks': (sys.excepthook, sys.displayhook, logging.raiseExceptions, signal.getsignal(signal.SIGTERM)),
        'streams': (sys.stdout.errors, sys.stderr.errors),
        'logging': (logging.root.level, list(logging.root.handlers), logging.getLogger('torch').level),
        'torch': (torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cudnn.benchmark,
                  torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()),
        'random numbers': (random.getstate(), torch.get_rng_state().tolist(), str(numpy.random.get_state())),
        'matplotlib': (matplotlib.get_backend(auto_select=False),
                       {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}),
        'OpenCV': (cv2.getNumThreads(), cv2.useOptimized()),
        'YAML': dict(yaml.Loader.yaml_constructors),
    }

before = state()
import mobileone_ext
for module in pkgutil.walk_packages(mobileone_ext.__path__, 'mobileone_ext.'):
    if module.name != 'mobileone_ext.__main__':
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            assert (error.name or '').split('.')[0] not in ('', 'mobileone_ext'), error
after = state()
print([name for name in before if before[name] != after[name]])
"""


def test_importing_the_package_changes_nothing():
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', PURE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]'
