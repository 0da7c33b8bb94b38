"""Networks without a config: what a run's folder, its checkpoints and exported files say themselves, and don't."""

import json
import shutil

import pytest
import torch
from conftest import TINY, data_options, only_line

import mobileone_ext as m1
from mobileone_ext import cli
from mobileone_ext.config import resolved_config
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import described, export, fuse, runtime
from mobileone_ext.deploy.formats.base import load_format

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def photos(digits):
    return sorted((digits / 'val').glob('*/*.png'))[::40]


@pytest.fixture(scope='module')
def files(tiny_run, digits, tmp_path_factory):
    """A run's folder that has moved, and what was made of it, by name."""
    folder = tmp_path_factory.mktemp('moved')
    shutil.copytree(tiny_run, folder / 'run')
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)[:3]))
    checkpoint = str(folder / 'run' / 'epoch_4.pth')
    weights = fuse.read_weights(config, checkpoint)
    model = fuse.fuse(fuse.load_model(config, weights))
    (folder / 'tuned').mkdir()
    fuse.save_fused(model, folder / 'tuned' / 'fused.pth', config, checkpoint, weights.source)
    for name, inside in (('normalized', False), ('pixels', True)):
        said = described.describe(Preprocessing(config), model.classes, checkpoint)
        export.export(model, folder / f'{name}.onnx', image_size=32, normalize=inside, softmax=inside, metadata=said)
    torch.save(dict(state_dict=model.state_dict()), folder / 'bare.pth')
    return folder


def predicted(run_tool, tmp_path, *arguments):
    code, text = run_tool('predict', *arguments, '--out', tmp_path / 'out.json')
    assert code == 0, text
    return json.loads((tmp_path / 'out.json').read_text()), text


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('run', "epoch_4.pth: described by its run's config, which is in it"),
        ('run/epoch_4.pth', "by its run's config"),
        ('tuned', "fused.pth: described by its run's config"),
        ('normalized.onnx', 'described by its metadata'),
        ('pixels.onnx', 'described by its metadata'),
    ],
)
def test_predictions_are_those_with_the_config(name, said, files, photos, digits, run_tool, tmp_path):
    options = ('--cfg-options', *data_options(digits)[:3])
    expected, _ = predicted(run_tool, tmp_path, TINY, files / 'run' / 'epoch_4.pth', *photos, *options)
    found, text = predicted(run_tool, tmp_path, files / name, *photos)
    assert said in text.splitlines()[0] and len(found) == len(photos)
    for one, other in zip(expected, found):
        assert one['image'] == other['image']
        assert [best['label'] for best in one['predictions']] == [best['label'] for best in other['predictions']]
        for best, same in zip(one['predictions'], other['predictions']):
            assert same['score'] == pytest.approx(best['score'], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(('name', 'config'), [('run', None), ('run/epoch_4.pth', None), ('bare.pth', TINY)])
def test_what_exports_a_network_takes_its_path(name, config, files, photos, tmp_path):
    """The file needs no config and answers as the network does, sure of as much."""
    m1.export(files / name, tmp_path / 'net.onnx', config=config, normalize=True, photos=photos)
    expected, found = m1.predict(files / name, photos, config=config), m1.predict(tmp_path / 'net.onnx', photos)
    assert len(found) == len(photos)
    for one, other in zip(expected, found):
        for best, same in zip(one['predictions'], other['predictions']):
            assert same['label'] == best['label'] and same['score'] == pytest.approx(best['score'], rel=1e-3, abs=1e-5)


def test_the_checkpoint_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match='no checkpoint of a run in this folder'):
        runtime.checkpoint_of_run(tmp_path)
    tmp_path = tmp_path / 'work_dirs' / 'tuned'
    run = tmp_path / 'run'
    run.mkdir(parents=True)
    for name in ('epoch_9.pth', 'epoch_10.pth'):
        (run / name).touch()
    with pytest.raises(ValueError, match=f'no checkpoint of a run in this folder; there are {tmp_path}$'):
        runtime.checkpoint_of_run(tmp_path.parent)
    assert runtime.checkpoint_of_run(tmp_path) == str(run / 'epoch_10.pth')
    (run / 'best_accuracy_top1_epoch_9.pth').touch()
    assert runtime.checkpoint_of_run(run) == str(run / 'best_accuracy_top1_epoch_9.pth')
    (tmp_path / 'fused.pth').touch()
    assert runtime.checkpoint_of_run(tmp_path) == str(tmp_path / 'fused.pth')


@pytest.mark.parametrize(
    ('network', 'photos', 'message'),
    [
        ('tunde', 'photo.png', 'tunde: no such run or file; did you mean {}/tuned?'),
        ('elsewhere', 'photo.png', 'elsewhere: no such run or file; {} holds bare.pth, '),
        ('normalised.onnx', 'photo.png', 'normalised.onnx: no such file; did you mean {}/normalized.onnx'),
        ('run/epoch_4.pht', 'photo.png', 'epoch_4.pht: no such run or file; did you mean {}/run/epoch_4.pth or '),
        ('tuned', 'phto.png', 'phto.png: no such file or folder; did you mean {}/photo.png?'),
        ('photo.png', 'tuned', 'photo.png: is a photo; a network is needed here'),
        ('photos', 'tuned', 'photos: no checkpoint of a run in this folder; it holds photos; a network is needed here'),
    ],
)
def test_what_is_not_there_or_in_the_others_place(network, photos, message, files, digits, run_tool):
    if not (files / 'photos').exists():
        shutil.copytree(digits / 'val' / '0', files / 'photos')
        shutil.copy(next((files / 'photos').iterdir()), files / 'photo.png')
    code, text = run_tool('predict', files / network, files / photos)
    assert code == 1 and message.replace('{}', str(files)) in only_line(text)


def test_what_says_nothing_is_one_line(files, photos, run_tool):
    code, text = run_tool('predict', files / 'bare.pth', photos[0])
    assert code == 1 and 'bare.pth: does not say which images it takes; name its config' in only_line(text)
    code, text = run_tool('predict', TINY, files / 'bare.pth')
    assert code == 1 and 'is a config; name the network and then images behind it' in only_line(text)
    code, text = run_tool('predict', files / 'none.pth', photos[0])
    assert code == 1 and 'none.pth: no such run or file' in only_line(text)


def test_a_config_beside_a_checkpoint(files, photos, run_tool, tmp_path):
    """Of a run it is values; another program is none."""
    shutil.copy(files / 'bare.pth', tmp_path)
    shutil.copy(files / 'run' / 'tiny_digits.py', tmp_path)
    code, text = run_tool('predict', tmp_path / 'bare.pth', photos[0])
    assert code == 0 and 'by tiny_digits.py, which is beside it' in text, text
    (tmp_path / 'tiny_digits.py').write_text('import os\nopen(os.path.join(os.path.dirname(__file__), "ran"), "w")\n')
    code, text = run_tool('predict', tmp_path / 'bare.pth', photos[0])
    assert code == 1 and 'does not say which images it takes' in only_line(text)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("import os\nos.system('touch {ran}')", 'line 1 is code'),
        ("model = __import__('os').system('touch {ran}')", 'is not read (malformed node'),
        ("model = dict(type='os.system')", "'os.system': no registered part"),
        ("model = dict(a=[dict(type='subprocess.Popen', args='touch {ran}')])", 'no registered part'),
        ("custom_imports = dict(imports=['antigravity'])", 'custom_imports of antigravity'),
        ('model = ' + '[' * 3000, 'is not read'),
    ],
)
def test_a_config_in_a_checkpoint_is_data(text, message, files, photos, run_tool, tmp_path):
    checkpoint = torch.load(files / 'bare.pth')
    text = text.replace('{ran}', str(tmp_path / 'ran'))
    torch.save(dict(checkpoint, meta=dict(cfg=text)), tmp_path / 'net.pth')
    code, printed = run_tool('predict', tmp_path / 'net.pth', photos[0])
    assert code == 1 and message in only_line(printed), printed
    assert 'net.pth: the config of its run is not read' in printed and not (tmp_path / 'ran').exists()


def test_a_resolved_config_is_what_mmengine_wrote():
    """Also of keys that are no names, as those of a fine-tuning's layers."""
    config = cli.load_config(TINY)
    config.optim_wrapper.paramwise_cfg = dict(custom_keys={'head.': dict(lr_mult=10.0)})
    assert "dict({'head.'" in config.pretty_text
    assert resolved_config(config.pretty_text, 'net.pth')._to_lazy_dict() == config._to_lazy_dict()


def test_published_weights_have_the_config_that_ships():
    found = described.find_network('timm/mobileone_s3.apple_in1k')
    assert found.config.model.backbone.arch == 's3' and 'published' in found.note


@pytest.fixture
def exported(files, tmp_path):
    """``exported(key=value)``: a file with other metadata, None for one that is not there."""

    def write(**changes):
        import onnx

        proto = onnx.load(files / 'normalized.onnx')
        metadata = {item.key: item.value for item in proto.metadata_props} | changes
        metadata = {key: value for key, value in metadata.items() if value is not None}
        load_format('onnx').write_onnx(proto, tmp_path / 'net.onnx', metadata)
        return tmp_path / 'net.onnx'

    return write


OLDER = dict.fromkeys(('fit', 'crop', 'interpolation', 'backend'))


@pytest.mark.parametrize(
    'changes',
    [
        dict(size=None),
        dict(mean=None),
        dict(mean='nothing'),
        dict(mean='[1, NaN, 2]'),
        dict(size='[32, 1000000]'),
        dict(fit='stretch'),
    ],
)
def test_metadata_that_do_not_tell(changes, exported, photos, run_tool):
    code, text = run_tool('predict', exported(**changes), photos[0])
    assert code == 1 and 'does not say which images it takes' in only_line(text), text


@pytest.mark.parametrize(
    'steps',
    [
        None,
        '[]',
        '[{"type": "os.system"}]',
        '[{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": 1000000}, {"type": "PackInputs"}]',
        '[{"type": "LoadImageFromFile"}, {"type": "Resize", "backend": {"type": "x"}}, {"type": "PackInputs"}]',
    ],
)
def test_files_that_tell_their_size_alone(steps, exported, photos, run_tool):
    code, text = run_tool('predict', exported(**OLDER, preprocessing=steps), photos[0])
    assert code == 0 and 'the shorter edge to 37 pixels, the middle cut out' in text


def test_an_older_file_has_the_steps_themselves(exported, files, photos, run_tool, tmp_path):
    steps = [
        dict(type='mobileone_ext.LoadImageFromFile'),
        dict(type='Resize', scale=[32, 32], backend='pillow'),
        dict(type='PackInputs'),
    ]
    older = exported(**OLDER, preprocessing=json.dumps(steps))
    found, _ = predicted(run_tool, tmp_path, older, *photos)
    assert found == predicted(run_tool, tmp_path, files / 'normalized.onnx', *photos)[0]


def test_steps_are_the_configs(files):
    found = described.find_network(str(files / 'pixels.onnx'))
    load, resize, pack = (dict(step) for step in Preprocessing(found.config).pipeline)
    assert (load['type'], pack['type']) == ('mobileone_ext.LoadImageFromFile', 'PackInputs')
    assert resize == dict(type='Resize', scale=(32, 32), backend='pillow', interpolation='bilinear')


def test_what_is_a_config():
    assert runtime.names_config('any/where.py') and runtime.names_config('mobileone_s0_8xb32')
    assert not runtime.names_config('net.pth') and not runtime.names_config('work_dirs')
