"""The tools, files and processes: OUT that is a source, a full disk, Ctrl-C, a killed worker, a second run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, TINY, data_options, only_line

from mobileone_ext.engine import train as training
from mobileone_ext.engine.processes import one_writer

pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')


@pytest.fixture
def checkpoint(tiny_run, tmp_path):
    return shutil.copy(tiny_run / 'epoch_4.pth', tmp_path / 'epoch_4.pth')


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{ROOT / TINY}'")
    return path


def with_suffix(path, suffix):
    """Another name of the file, a hard link that ends as a tool wants it."""
    link = path.parent / f'linked{suffix}'
    os.link(path, link)
    return link


# What each tool is called with, OUT last: {c} config, {x} checkpoint, {o} a hard link to either.
CALLS = {
    'reparam': ['{c}', '{x}', '{o}'],
    'reparam report': ['{c}', '{x}', '{t}/new.pth', '--report', '{o}'],
    'export': ['{c}', '{x}', '{o}'],
    'quantize': ['{c}', '{x}', '{o}', '--calib', '{photos}', '--num-calib', '2'],
    'predict': ['{c}', '{x}', '{photos}', '--out', '{o}'],
    'test': ['{c}', '{x}', '--out', '{o}'],
    'convert_checkpoint': ['{x}', '{o}', '--to', 'timm'],
}
SUFFIX = {'reparam': '.pth', 'export': '.onnx', 'quantize': '.onnx', 'convert_checkpoint': '.safetensors'}


@pytest.mark.parametrize('call', CALLS)
@pytest.mark.parametrize('source', ['checkpoint', 'config'])
def test_out_is_a_source(run_tool, tmp_path, checkpoint, config, digits, call, source):
    if call == 'convert_checkpoint' and source == 'config':
        pytest.skip('reads no config')
    original = checkpoint if source == 'checkpoint' else config
    content = original.read_bytes()
    out = with_suffix(original, SUFFIX.get(call, '.json'))
    names = dict(c=config, x=checkpoint, o=out, t=tmp_path, photos=digits / 'train' / '0')
    code, text = run_tool(call.split()[0], *(part.format(**names) for part in CALLS[call]))
    assert code == 1 and 'is what is read' in only_line(text), text
    assert original.read_bytes() == content and out.samefile(original)


def test_weights_beside_an_openvino_graph(run_tool, tmp_path, checkpoint, config):
    weights = checkpoint.rename(tmp_path / 'net.bin')
    code, text = run_tool('export', config, weights, tmp_path / 'net.xml', '--format', 'openvino')
    assert code == 1 and 'net.bin: is what is read' in only_line(text)


def test_a_folder_that_is_no_coreml_package(run_tool, tmp_path, checkpoint, config):
    folder = tmp_path / 'thesis.mlpackage'
    folder.mkdir()
    (folder / 'chapter1.txt').write_text('irreplaceable')
    code, text = run_tool('export', config, checkpoint, folder, '--format', 'coreml')
    assert code == 1 and 'holds other things than a file of format coreml' in only_line(text)
    assert (folder / 'chapter1.txt').exists()


SAYS = {
    'predict': ['{x}', '{photo}', '--out', '{o}/out.csv', '--draw', '{o}/drawn', '--explain', '{o}/seen'],
    'compare': ['{x}', '{x}', '--images', '{photo}', '--out', '{o}/difference.json'],
    'features': ['{photo}', '--network', '{x}', '--projector', '{o}/board'],
    'reparam': ['{c}', '{x}', '{o}/fused.pth', '--report', '{o}/fused.json', '--no-evaluate'],
    'export': ['{c}', '{x}', '{o}/net.onnx'],
    'quantize': [
        '{c}',
        '{x}',
        '{o}/int8.onnx',
        '--images',
        '{photos}',
        '--num-images',
        '2',
        '--report',
        '{o}/int8.json',
    ],
    'convert_checkpoint': ['{x}', '{o}/s0.pth', '--to', 'timm'],
    'plot_recipe': ['{c}'],
}


@pytest.mark.parametrize('tool', SAYS)
def test_a_tool_says_what_it_has_written(tool, run_tool, tmp_path, checkpoint, digits, monkeypatch):
    """And where, also where nobody told it: in the folder of runs, not among the user's own files."""
    out, photos = tmp_path / 'out', digits / 'train' / '0'
    out.mkdir()
    monkeypatch.chdir(tmp_path)
    names = dict(c=ROOT / TINY, x=checkpoint, o=out, photos=photos, photo=next(photos.iterdir()))
    before = set(tmp_path.iterdir())
    code, text = run_tool(tool, *(part.format(**names) for part in SAYS[tool]))
    assert code == 0, text
    assert set(tmp_path.iterdir()) - before <= {tmp_path / 'work_dirs'}
    places = [*out.iterdir(), *(Path('work_dirs', path.name) for path in tmp_path.glob('work_dirs/*'))]
    named = [path for path in places if not path.name.endswith('.labels.txt')]  # goes with a file that is named
    assert named and all(f'{path}:' in text or f'--logdir {path}' in text for path in named), text


@contextmanager
def full_disk(size):
    """No file grows beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    'call, name',
    [
        (['reparam', '{c}', '{x}', '{t}/o.pth', '--no-eval'], 'o.pth'),
        (['convert_checkpoint', '{x}', '{t}/o.pth', '--to', 'apple'], 'o.pth'),
        (['convert_checkpoint', '{x}', '{t}/o.safetensors', '--to', 'timm'], 'o.safetensors'),
        (['export', '{c}', '{x}', '{t}/o.onnx', '--size', '32'], 'o.onnx'),
        (['export', '{c}', '{x}', '{t}/o.pt', '--format', 'torchscript', '--size', '32'], 'o.pt'),
        (['export', '{c}', '{x}', '{t}/o.xml', '--format', 'openvino', '--size', '32'], 'o.xml'),
        (['export', '{c}', '{x}', '{t}/o.ort', '--format', 'ort', '--size', '32'], 'o.ort'),
        (['export', '{c}', '{x}', '{t}/o.mlpackage', '--format', 'coreml', '--size', '32'], 'o.mlpackage'),
        (['export', '{c}', '{x}', '{t}/o.param', '--format', 'ncnn', '--size', '32'], 'o.param'),
        (['export', '{c}', '{x}', '{t}/o.mnn', '--format', 'mnn', '--size', '32'], 'o.mnn'),
        (['train', TINY, '--work-dir', '{t}/run', '--no-validate', '--cfg-options', '{d}'], 'epoch_1.pth'),
    ],
)
def test_a_full_disk(run_tool, tmp_path, checkpoint, config, digits, call, name):
    names = dict(c=config, x=checkpoint, t=tmp_path)
    before = set(tmp_path.iterdir())
    tool, *arguments = call
    arguments = [option for part in arguments for option in (data_options(digits) if part == '{d}' else [part])]
    with full_disk(165_000 if tool == 'train' else 4_000):  # training tries a small checkpoint out first
        code, text = run_tool(tool, *(argument.format(**names) for argument in arguments))
    if 'a package that is not installed' in text:
        pytest.skip(only_line(text))
    assert code == 1 and f'{name}: cannot be written: ' in only_line(text), text
    assert 'make room' in text
    assert set(tmp_path.iterdir()) - before <= {tmp_path / 'run'}
    assert not list(tmp_path.rglob('*.part'))


def test_ctrl_c_is_one_line_and_130(run_tool, tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, 'train', interrupted)
    code, text = run_tool('train', TINY, '--work-dir', tmp_path)
    assert code == 130 and text.strip().startswith('interrupted; ') and len(text.strip().splitlines()) == 1


def test_a_killed_worker_is_one_line(run_tool, tmp_path, digits, monkeypatch):
    from mobileone_ext.data.transforms import LoadImageFromFile

    def transform(self, results):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(LoadImageFromFile, 'transform', transform)
    options = [*data_options(digits)[:3], 'train_dataloader.num_workers=1']
    code, text = run_tool('train', TINY, '--work-dir', tmp_path, '--no-validate', '--cfg-options', *options)
    message = only_line(text)
    assert code == 1 and "the data loader's worker" in message and 'was killed' in message and '--resume' in message


def test_a_second_run_in_a_folder(run_tool, tmp_path, digits):
    with one_writer(tmp_path, 'tools/train.py'):
        code, text = run_tool('train', TINY, '--work-dir', tmp_path, '--cfg-options', *data_options(digits))
    assert code == 1 and f'tools/train.py, process {os.getpid()} on ' in only_line(text)
    assert not list(tmp_path.glob('*.py')), 'the second run has written into the folder of the first'


STUDY = """
import sys
from pathlib import Path
from mmengine.config import Config
from mobileone_ext import cli
from mobileone_ext.ablation import ablate
from mobileone_ext.ablation.study import read_study
folder = Path(sys.argv[1])
ablate.TOOLS = (str(folder / 'train.py'),)
study = read_study(str(folder / 'study.py'))
runs = ablate.plan(study, cli.load_config('tests/configs/tiny_digits.py'), [0], folder / 'work')
cli.run(lambda: ablate.run_study(study, 'base', runs, folder / 'work', 'none', 1))
"""
TRAINER = """
import os, pathlib, time
with open(pathlib.Path(__file__).with_name('pids'), 'a') as file:
    file.write(f'{os.getpid()}\\n')
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_ended_leaves_no_trainer(tmp_path, sign):
    (tmp_path / 'study.py').write_text("title = 't'\nvariants = {'a': {}}")
    (tmp_path / 'train.py').write_text(TRAINER)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')

    def start():
        return subprocess.Popen(
            [sys.executable, '-c', STUDY, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def trainers(count):
        for _ in range(6000):
            pids = (tmp_path / 'pids').read_text().split() if (tmp_path / 'pids').exists() else []
            if len(pids) >= count:
                return [int(pid) for pid in pids]
            time.sleep(0.02)
        raise AssertionError('no trainer was started')

    def running(pid):
        stat = f'/proc/{pid}/stat'
        return os.path.exists(stat) and open(stat).read().rsplit(')', 1)[1].split()[0] != 'Z'

    study = start()
    (first,) = trainers(1)
    second = start()
    message = second.communicate()[1].decode()
    assert second.returncode == 1 and f'tools/ablate.py, process {study.pid} on' in message, message
    study.send_signal(sign)
    study.communicate()
    again = start()
    assert trainers(2)[0] == first
    assert not running(first)
    again.kill()
    again.communicate()


@pytest.mark.parametrize('name', ['..', '///', '.', '', '-'])
def test_a_variant_without_a_name_for_its_folder(run_tool, tmp_path, name):
    (tmp_path / 'study.py').write_text(f"title = 't'\nvariants = {{{name!r}: {{}}}}")
    code, text = run_tool('ablate', tmp_path / 'study.py', '--base', TINY, '--work-dir', tmp_path / 'work')
    assert code == 1 and 'names differ in letters or digits' in only_line(text)


def test_a_name_with_escapes_is_printed_with_escapes(run_tool, tmp_path, checkpoint, config, digits):
    folder = tmp_path / 'photos'
    folder.mkdir()
    photo = next((digits / 'train' / '0').iterdir())
    shutil.copy(photo, folder / 'a\x1b[31m\nb.png')
    (folder / 'c\x1b.png').write_text('no image')
    code, text = run_tool('predict', config, checkpoint, folder)
    assert code == 0 and r'a\x1b[31m\nb.png' in text and r'c\x1b.png' in text and '\x1b' not in text, text
    code, text = run_tool('predict', config, tmp_path / 'x\x1b.pth', folder)
    assert code == 1 and r'x\x1b.pth' in only_line(text) and '\x1b' not in text


def test_what_is_computed_is_written_before_it_is_shown(run_tool, tmp_path, checkpoint, config, digits, monkeypatch):
    """A console that fails, as one that is closed does, costs no result."""
    photo, out, shown = next((digits / 'val').rglob('*.png')), tmp_path / 'out.json', []

    def fails(*text, **options):
        shown.append((*text, out.exists(), len(list(tmp_path.glob('drawn/*.png')))))
        raise BrokenPipeError('nobody reads')

    monkeypatch.setattr('builtins.print', fails)
    with pytest.raises(BrokenPipeError):
        run_tool('predict', config, checkpoint, photo, '--out', out, '--draw', tmp_path / 'drawn')
    assert shown[0] == (str(photo), True, 1) and json.loads(out.read_text())[0]['image'] == str(photo)
