"""Files that are whole or not there, on a full disk as well; leftovers; names on a terminal; OUT that is a source."""

import errno
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save

from mobileone_ext import files
from mobileone_ext.files import check_distinct, temporary_folder, write_atomically, write_text


@pytest.fixture(autouse=True)
def first_write_of_a_process(monkeypatch):
    monkeypatch.setattr(files, '_tidied', set())


def gone_process() -> int:
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_leftovers_of_processes_that_are_gone_are_removed(tmp_path):
    gone, host = gone_process(), files._HOST
    names = {
        f'.epoch_1.pth.{host}.{gone}.part': False,
        f'.net.onnx.{host}.{gone}.part': False,
        f'.epoch_2.pth.{host}.{os.getppid()}.part': True,
        f'.epoch_3.pth.elsewhere.{gone}.part': True,
        f'.old.pth.elsewhere.{gone}.part': False,
        'my.part': True,
        '.part': True,
        'epoch_1.pth': True,
    }
    for name in names:
        (tmp_path / name).write_text('half')
    os.utime(tmp_path / f'.old.pth.elsewhere.{gone}.part', (time.time() - 2 * 24 * 3600,) * 2)
    folder = tmp_path / f'.x.mlpackage.{host}.{gone}.part'
    folder.mkdir()
    (folder / 'inner').write_text('half')
    write_text('new', tmp_path / 'new')
    assert {path.name for path in tmp_path.iterdir()} == {name for name, kept in names.items() if kept} | {'new'}


@pytest.mark.parametrize(
    ('path', 'hint'),
    [
        ('runs/flowres', '; did you mean runs/flowers?'),
        ('runs/flowres/fused.pth', '; did you mean runs/flowers?'),
        ('runs/flowers/fuse.pth', '; did you mean runs/flowers/fused.pth?'),
        ('runs/x', '; runs holds digits, flowers'),
        ('run', '; did you mean runs?'),
        ('x', ''),
        ('runs/empty/x', '; runs holds digits, flowers'),
        ('runs/digits/x', ''),
        ('runs/flowers/fused.pth/x', ''),
    ],
)
def test_what_lies_near(path, hint, tmp_path, monkeypatch):
    for folder in ('runs/flowers', 'runs/digits', 'runs/.hidden'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'runs/flowers/fused.pth').touch()
    monkeypatch.chdir(tmp_path)
    assert files.near(path) == hint


def test_a_temporary_folder_goes(tmp_path):
    with temporary_folder(tmp_path / 'out.xml') as folder:
        (folder / 'out.xml').write_text('whole')
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_long_name(tmp_path):
    path = tmp_path / ('n' * 240 + '.txt')
    write_text('text', path)
    assert path.read_text() == 'text' and list(tmp_path.iterdir()) == [path]


@contextmanager
def full_disk():
    """No file grows beyond 20 kB: the error that a library raises is the one of a full disk, but for its number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_torch(path):
    torch.save(dict(state_dict={f'{i}': torch.zeros(1000) for i in range(50)}), path)


def write_png(path):
    from PIL import Image

    Image.effect_noise((400, 400), 99).save(path, 'png')


def write_onnx(path):
    import onnx

    weights = onnx.numpy_helper.from_array(torch.zeros(300, 300).numpy(), 'w')
    graph = onnx.helper.make_graph([], 'g', [], [], [weights])
    onnx.save(onnx.helper.make_model(graph), path)


WRITERS = {
    'torch': write_torch,
    'safetensors': lambda path: path.write_bytes(save(dict(w=torch.zeros(100_000)))),
    'text': lambda path: path.write_text('x' * 100_000),
    'png': write_png,
    'onnx': write_onnx,
}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('context', [write_atomically, temporary_folder])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, writer, context):
    path = tmp_path / 'out.file'
    path.write_text('old')
    message = 'out.file: cannot be written: .* make room and run it again'
    with full_disk(), pytest.raises(OSError, match=message) as caught, context(path) as part:
        WRITERS[writer](part / 'inner' if part.is_dir() else part)
    assert '\n' not in str(caught.value)
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_errors_of_other_kinds_stay(tmp_path):
    with pytest.raises(RuntimeError, match='shape'), write_atomically(tmp_path / 'a'):
        raise RuntimeError('shape')
    with pytest.raises(OSError) as caught, write_atomically(tmp_path / 'a'):
        raise OSError(errno.ENOENT, 'gone', 'b')
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize('kind', ['itself', 'another spelling', 'symbolic link', 'hard link', 'link to come'])
def test_out_is_a_source(tmp_path, monkeypatch, kind):
    source = tmp_path / 'source.pth'
    source.write_text('weights')
    out = tmp_path / 'out.pth'
    if kind == 'itself':
        out = source
    elif kind == 'another spelling':
        monkeypatch.chdir(tmp_path)
        out = 'x/../source.pth'
        (tmp_path / 'x').mkdir()
    elif kind == 'symbolic link':
        out.symlink_to(source)
    elif kind == 'hard link':
        os.link(source, out)
    else:
        source, target = tmp_path / 'link.pth', source
        source.symlink_to(target)
        out = target
    with pytest.raises(ValueError, match='is what is read'):
        check_distinct(out, None, tmp_path / 'absent', source)


def test_out_is_no_source(tmp_path):
    (tmp_path / 'source').write_text('a')
    (tmp_path / 'out').write_text('a')
    check_distinct(tmp_path / 'out', tmp_path / 'source')
    check_distinct(tmp_path / 'new', tmp_path / 'source', 'apple/mobileone_s0')
