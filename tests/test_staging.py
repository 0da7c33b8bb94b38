"""Files that belong together: whole after an error, and after a kill at any moment once somebody writes there again."""

import subprocess
import sys

import pytest

from mobileone_ext.files import staging_folder

# Writes new.xml and new.bin over older ones and kills itself at the n-th os.replace.
WRITER = """
import os, signal, sys
from pathlib import Path
from mobileone_ext.files import staging_folder
folder, deadly, calls, replace = Path(sys.argv[1]), int(sys.argv[2]), [], os.replace

def counted(source, target):
    calls.append(target)
    if len(calls) == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = counted
with staging_folder(folder / 'net.xml', ['net.bin']) as part:
    (part / 'net.xml').write_text('new graph')
    (part / 'net.bin').write_text('new weights')
print(len(calls))
"""


def write_until(folder, deadly):
    return subprocess.run([sys.executable, '-c', WRITER, folder, str(deadly)], capture_output=True, text=True)


def write_another(folder):
    with staging_folder(folder / 'other.xml') as part:
        (part / 'other.xml').write_text('other')


@pytest.mark.parametrize('deadly', [1, 2, 3])
def test_pair_is_of_one_write_after_a_kill_between_any_two_steps(deadly, tmp_path):
    (tmp_path / 'net.xml').write_text('old graph')
    (tmp_path / 'net.bin').write_text('old weights')
    assert write_until(tmp_path, deadly).returncode == -9
    assert len(list(tmp_path.glob('.net.xml.*'))) == 1
    write_another(tmp_path)
    # Before the mark that all is there nothing has changed; after it everything does.
    state = 'old' if deadly == 1 else 'new'
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {'net.xml': f'{state} graph', 'net.bin': f'{state} weights', 'other.xml': 'other'}


def test_those_are_all_the_steps(tmp_path):
    done = write_until(tmp_path, 99)
    assert (done.returncode, done.stdout.strip()) == (0, '3')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.bin', 'net.xml']


def test_error_leaves_the_older_files(tmp_path):
    (tmp_path / 'net.xml').write_text('old')
    with pytest.raises(ValueError, match='refused'), staging_folder(tmp_path / 'net.xml', ['net.bin']) as part:
        (part / 'net.xml').write_text('new')
        (part / 'net.bin').write_text('new')
        raise ValueError('refused')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'net.xml': 'old'}


def test_folder_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / 'net.mlpackage').mkdir()
    (tmp_path / 'net.mlpackage' / 'old').touch()
    with staging_folder(tmp_path / 'net.mlpackage') as part:
        (part / 'net.mlpackage').mkdir()
        (part / 'net.mlpackage' / 'new').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['net.mlpackage', 'new']
