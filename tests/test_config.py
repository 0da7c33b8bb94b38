"""Loading configs: which keys are read, which values fit, YAML and JSON as data, read_base(), options."""

import json
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT, TINY, only_line
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import HOOKS, MODELS, OPTIMIZERS
from torch.utils.data import DataLoader

from mobileone_ext.config import building, find_file, load_config, override, require_data
from mobileone_ext.engine.dry_run import dry_run
from mobileone_ext.engine.train import train

PARTS = 'train', 'val', 'test'
BASE = f"_base_ = '{ROOT}/configs/mobileone_tiny_digits.py'\n"


@pytest.fixture
def written(tmp_path):
    """Writes a config beside its bases and returns its path."""

    def write(text, name='mine.py'):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


@pytest.fixture(scope='module')
def tiny():
    return load_config(str(ROOT / TINY))


def test_a_name_that_the_text_reads_is_read_and_gone_after_that(written):
    written("_root = 'data'\nroot = _root\nsteps = [dict(type='PackInputs')]\n" + BASE, 'base.py')
    config = load_config(
        written("""
            _base_ = './base.py'
            small = 16
            train_dataloader = dict(batch_size=small, dataset=dict(data_root={{_base_.root}}, pipeline=_base_.steps))
            def helper():
                return 1
            """)
    )
    assert config.train_dataloader.batch_size == 16
    assert config.train_dataloader.dataset.data_root == 'data'
    assert config.train_dataloader.dataset.pipeline == [dict(type='PackInputs')]
    assert not {'_root', 'root', 'steps', 'small', 'helper'} & set(config)
    again = Path(written(config.pretty_text, 'resolved.py'))
    assert load_config(str(again)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    'text, message',
    [
        ('import nowhere', "custom_imports: No module named 'nowhere'; PYTHONPATH=FOLDER before the command"),
        ('from torch import nothing', "custom_imports: cannot import name 'nothing' from 'torch'[^;]*$"),
        ('raise ValueError("as one wrote it")', 'line 1 of imported_here.py: as one wrote it'),
        (None, "custom_imports: No module named 'imported_here'; PYTHONPATH=FOLDER"),
    ],
)
def test_why_a_file_is_not_imported_is_said(written, tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(tmp_path / 'mine')
    if text:
        (tmp_path / 'mine').mkdir()
        (tmp_path / 'mine/imported_here.py').write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(written(BASE + "custom_imports = dict(imports=['imported_here'])"))
    assert '\n' not in str(caught.value)


# Text of a config over the tiny one, and what the line says: of what nobody else would notice, when it is loaded ...
LOADED = [
    ('trian_dataloader = dict()', "'trian_dataloader': nothing reads it; did you mean 'train_dataloader'"),
    ("runner_type = 'FlexibleRunner'", "'runner_type': nothing reads it"),
    ('auto_scale_lr = dict(base_batchsize=4)', "'auto_scale_lr.base_batchsize': nothing reads it"),
    ('env_cfg = dict(cudnn_benchmrk=True)', "'env_cfg.cudnn_benchmrk': nothing reads it"),
    ('train_cfg = dict(max_epochs=2.5)', 'train_cfg.max_epochs=2.5: a whole number from 1 on'),
    ("train_cfg = dict(max_epochs='5')", "train_cfg.max_epochs='5': a whole number"),
    ('train_cfg = dict(max_epochs=-1)', 'train_cfg.max_epochs=-1: a whole number'),
    ('train_cfg = dict(max_epochs=True)', 'train_cfg.max_epochs=True: a whole number'),
    ('train_dataloader = dict(batch_size=0)', 'train_dataloader.batch_size=0: a whole number from 1 on'),
    ("default_hooks = dict(logger=dict(interval='2'))", "default_hooks.logger.interval='2': a whole number"),
    ("model = dict(head=dict(num_classes='1O'))", "model.head.num_classes='1O': a whole number"),
    ('optim_wrapper = dict(optimizer=dict(lr=(0, 1)))', r'optim_wrapper.optimizer.lr=\(0, 1\): a number'),
    ("optim_wrapper = dict(optimizer=dict(lr='1e-3'))", "optim_wrapper.optimizer.lr='1e-3': a number"),
    ("model = dict(backbone=dict(use_skip='flase'))", "model.backbone.use_skip='flase': True or False"),
    ("train_dataloader = dict(sampler=dict(shuffle='False'))", "sampler.shuffle='False': True or False"),
    ('x = 1 +', 'SyntaxError'),
    ('train_cfg = dict(max_epochs=epochs)', "line 2 of mine.py: NameError: name 'epochs'"),
]
# ... and what a part says itself when it is built, with the part and the key.
BUILT = [
    ('train_cfg = dict(max_epoch=3)', "EpochBasedTrainLoop.* 'max_epoch'"),
    ('train_dataloader = dict(batchsize=4)', "train_dataloader: .*DataLoader.* 'batchsize'"),
    ('train_dataloader = dict(sampler=dict(shufle=True))', "DefaultSampler.* 'shufle'"),
    ('train_dataloader = dict(dataset=dict(data_rot=1))', "CustomDataset.* 'data_rot'"),
    (
        "train_dataloader = dict(dataset=dict(type='CustomDatset'))",
        "no dataset is 'CustomDatset'; did you mean 'CustomDataset'",
    ),
    ("test_dataloader = dict(dataset=dict(pipeline=[dict(type='PackInputs', key=1)]))", "PackInputs.* 'key'"),
    ('optim_wrapper = dict(optimizer=dict(learning_rate=1))', "SGD.* 'learning_rate'"),
    ('optim_wrapper = dict(clip_gard=dict(max_norm=1))', "OptimWrapper.* 'clip_gard'"),
    ('optim_wrapper = dict(clip_grad=dict(max_nrm=1))', "clip_grad_norm_.* 'max_nrm'"),
    ('optim_wrapper = dict(paramwise_cfg=dict(norm_decay=0))', 'paramwise_cfg: nothing reads norm_decay'),
    ("optim_wrapper = dict(optimizer=dict(type='AdamW'))", "AdamW.* 'momentum'"),
    ('model = dict(backbone=dict(use_skp=True))', "MobileOne.* 'use_skp'"),
    ("custom_hooks = [dict(type='EMAHook', momentun=0.1)]", "EMAHook: .*ExponentialMovingAverage.* 'momentun'"),
    ("custom_hooks = [dict(type='EMAHok')]", "no hook is 'EMAHok'; did you mean 'EMAHook'"),
    ("model = dict(backbone=dict(type='mobileone_ext.MobileOn'))", "did you mean 'mobileone_ext.MobileOne'"),
    ("optim_wrapper = dict(optimizer=dict(type='SDG'))", "no optimizer is 'SDG'; did you mean 'SGD'"),
    ("param_scheduler = [dict(type='LinearLR', strat_factor=0.1)]", "LinearLR: .* 'strat_factor'"),
    ('default_hooks = dict(checkpoint=dict(intervall=2))', "CheckpointHook: .* 'intervall'"),
    ('randomness = dict(sed=4)', "set_randomness.* 'sed'"),
    ('val_evaluator = dict(topk=1, thr=2)', "val_evaluator .*Accuracy.* 'thr'"),
    ('test_cfg = dict(fp=1)', "test_cfg: .*TestLoop.* 'fp'"),
]


@pytest.mark.parametrize('text, message', LOADED, ids=[text for text, _ in LOADED])
def test_what_nobody_else_would_notice_is_one_line_of_loading(written, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(written(BASE + text))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text, message', BUILT, ids=[text for text, _ in BUILT])
def test_what_a_part_refuses_is_one_line_of_a_dry_run(written, text, message):
    config = load_config(written(BASE + text))
    with pytest.raises(ValueError, match=message) as caught:
        dry_run(config, 'mine.py')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'text, message',
    [
        *(
            slip
            for slip in BUILT
            if any(key in slip[0] for key in ('data_rot=', 'learning_rate', 'momentun', 'intervall'))
        ),
        ("model = dict(init_cfg=dict(type='Pretrained', chckpoint='x'))", "model.init_cfg: .* 'chckpoint'"),
        ("visualizer = dict(vis_backends=[dict(type='WandbVisBackend')])", 'visualizer: .*wandb'),
    ],
)
def test_what_a_part_refuses_is_one_line_before_the_first_step(written, digits, tmp_path, monkeypatch, text, message):
    def first_hooks(self, index, batch):
        self.runner.call_hook('before_train_iter', batch_idx=index, data_batch=batch)

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_iter', first_hooks)
    config = load_config(written(BASE + text), {f'{part}_dataloader.dataset.data_root': str(digits) for part in PARTS})
    config.work_dir = str(tmp_path / 'run')
    with pytest.raises(ValueError, match=message) as caught:
        train(config)
    assert '\n' not in str(caught.value)


def test_a_misspelt_option_is_one_line_and_exit_code_1(run_tool):
    for tool, rest in (('train', ()), ('test', ('none.pth',)), ('plot_recipe', ())):
        for option in ('train_cfg.max_epoch=3', 'optim_wrapper.optimizer.lr=0,01'):
            code, text = run_tool(tool, TINY, *rest, '--cfg-options', option)
            assert code == 1 and option.split('=')[0].split('.')[-1] in only_line(text), text


OPTIONS = [
    ({'model.backbone.use_scale': False}, lambda c: c.model.backbone.use_scale is False),
    ({'custom_hooks.EMAHook.momentum': 0.5}, lambda c: c.custom_hooks[0].momentum == 0.5),
    ({'custom_hooks.0.momentum': 0.5}, lambda c: c.custom_hooks[0].momentum == 0.5),
    ({'custom_hooks.EMAHook': None}, lambda c: c.custom_hooks == []),
    ({'val_cfg': None}, lambda c: c.val_cfg is None),
    ({'randomness.seed': None}, lambda c: c.randomness.seed is None),
    ({'auto_scale_lr.base_batch_size': 64}, lambda c: c.auto_scale_lr.base_batch_size == 64),
    ({'model.backbone.init_cfg.type': 'Kaiming'}, lambda c: c.model.backbone.init_cfg == dict(type='Kaiming')),
    ({'model.head.topk': (1, 3)}, lambda c: c.model.head.topk == (1, 3)),
    ({'env_cfg.dist_cfg.backend': 'gloo'}, lambda c: c.env_cfg.dist_cfg.backend == 'gloo'),
    (
        {'optim_wrapper.optimizer.type': 'AdamW', 'optim_wrapper.optimizer.momentum': None},
        lambda c: set(c.optim_wrapper.optimizer) == {'type', 'lr', 'weight_decay'},
    ),
    (
        {'custom_hooks.EMAHook.type': 'mobileone_ext.FreezeNormHook', 'custom_hooks.0.epoch': 3}
        | {f'custom_hooks.0.{key}': None for key in ('momentum', 'update_buffers')},
        lambda c: set(c.custom_hooks[0]) == {'type', 'epoch', 'priority'},
    ),
    (
        {'train_cfg.by_epoch': False, 'train_cfg.max_epochs': None, 'train_cfg.max_iters': 9},
        lambda c: 'max_epochs' not in c.train_cfg,
    ),
    (
        {'train_cfg.max_epochs': None, 'train_cfg.type': 'IterBasedTrainLoop', 'train_cfg.max_iters': 9},
        lambda c: 'max_epochs' not in c.train_cfg,
    ),
]


@pytest.mark.parametrize('options, holds', OPTIONS, ids=[next(iter(options)) for options, _ in OPTIONS])
def test_options_are_set(options, holds):
    assert holds(load_config(str(ROOT / TINY), options))


def test_another_length_takes_the_schedule_along_and_says_so(capsys):
    config = load_config(str(ROOT / TINY), {'train_cfg.max_epochs': '2'})
    assert [scheduler.end for scheduler in config.param_scheduler] == [2]
    assert capsys.readouterr().out == 'epochs: 2 instead of 4; the schedule follows\n'


@pytest.mark.parametrize('text', ['[2024] set', 'x,y', '2024', '(new)', 'true', '1e3', "it's", '{a}', '  a', '猫'])
def test_text_is_taken_as_written_where_its_reader_takes_text_alone(text):
    config = load_config(str(ROOT / TINY), {'train_dataloader.dataset.data_root': text, 'work_dir': text})
    assert config.train_dataloader.dataset.data_root == config.work_dir == text


@pytest.mark.parametrize(
    'key, text, value',
    [
        ('load_from', 'None', None),
        ('load_from', "'None'", 'None'),
        ('model.head.topk', '1,3', [1, 3]),
        ('model.head.topk', '(1,3)', (1, 3)),
        ('train_dataloader.dataset.metainfo', "{'classes': ['a', 'b']}", dict(classes=['a', 'b'])),
        ('optim_wrapper.loss_scale', '512', 512),
        ('model.backbone.out_indices', '[3]', [3]),
        ('custom_hooks.EMAHook', 'None', None),
    ],
)
def test_options_from_the_command_line(key, text, value):
    options = {key: text}
    if 'loss_scale' in key:
        options = {'optim_wrapper.type': 'AmpOptimWrapper', **options}
    config = load_config(str(ROOT / TINY), options)
    node = config
    for part in key.split('.'):
        node = node.get(part) if hasattr(node, 'get') else None
    assert node == value


def test_words_with_commas_are_a_list_where_one_stands(written):
    path = written(BASE + "train_dataloader = dict(dataset=dict(metainfo=dict(classes=['a', 'b'])))")
    options = {'train_dataloader.dataset.metainfo.classes': 'c,d'}
    assert load_config(path, options).train_dataloader.dataset.metainfo.classes == ['c', 'd']


@pytest.mark.parametrize('option', ['key', '=3', ''])
def test_an_option_without_key_or_value_is_one_line(run_tool, option):
    code, text = run_tool('train', TINY, '--cfg-options', option)
    assert code == 1 and f'{option!r}: is not KEY=VALUE' in only_line(text)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'data_root': 'x'}, "no 'data_root' there and nothing reads it"),
        ({'model.backbon.arch': 's0'}, "no 'backbon' there; did you mean 'backbone'"),
        ({'train_dataloader.dataset.pipline': []}, "'pipline' there; did you mean 'pipeline'"),
        ({'train_cfg.max_iters': 9}, 'train_cfg.max_iters=9: the config trains by epochs, train_cfg.max_epochs=N'),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        load_config(str(ROOT / TINY), options)


@pytest.mark.parametrize('name', ['mobileone_s0_8xb32', 'mobileone_s0_8xb32.py', 'configs/mobileone_s0_8xb32.py'])
def test_a_config_that_ships_is_found_by_its_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).filename == str(ROOT / 'configs/mobileone_s0_8xb32.py')
    (tmp_path / 'mobileone_s0_8xb32.py').write_text(BASE)
    assert find_file('mobileone_s0_8xb32.py') == 'mobileone_s0_8xb32.py'
    assert find_file('branches', 'configs/ablations') == str(ROOT / 'configs/ablations/branches.py')


@pytest.mark.parametrize(
    'name, message',
    [
        ('mobileone_s0_8bx32', "no such config file; did you mean 'mobileone_s0_8xb32'"),
        ('own/mobileone_tiny_digit.py', "no such config file; did you mean 'mobileone_tiny_digits'"),
        ('mine', '; known are mobileone_s0_8xb32, .* more$'),
        ('tests', 'tests: no such config file'),
    ],
)
def test_a_config_that_is_not_there(name, message):
    with pytest.raises(OSError, match=message):
        load_config(name)


def test_a_config_of_another_kind(written):
    with pytest.raises(ValueError, match='c.txt: .*The config type should be py, json, yaml or yml'):
        load_config(written('a = 1', 'c.txt'))


def plain(config):
    return json.loads(json.dumps(config.to_dict()))


def test_yaml_and_json_are_read_as_data(written, tiny):
    import yaml

    path = written(json.dumps(plain(tiny)), 'c.json')
    assert plain(load_config(path)) == plain(tiny)
    path = written(yaml.safe_dump(plain(tiny)), 'c.yaml')
    assert plain(load_config(path)) == plain(tiny)


def code(folder):
    """Configs as data that would leave a file ``trace``; suffix, text."""
    command = f'touch {folder / "trace"}'
    yield '.yaml', f'x: !!python/object/apply:os.system ["{command}"]\n'
    yield '.yml', f'a: 1\nmodel: !!python/object/new:os.system ["{command}"]\n'
    yield '.yaml', f'_base_: {folder}/evil.yml\n'
    yield '.json', json.dumps(dict(model=dict(type='os.system', command=command)))
    yield '.json', json.dumps(dict(model=dict(type='ImageClassifier', neck=dict(type='os.system', command=command))))
    yield '.yaml', f'custom_hooks: [{{type: subprocess.call, args: [touch, {folder / "trace"}]}}]\n'
    yield '.json', json.dumps(dict(custom_imports=dict(imports=['evil']), model=dict()))
    yield '.json', '{"model": '
    yield '.yaml', 'model: [1, 2'


@pytest.mark.parametrize('number', range(9))
def test_data_runs_no_code(tmp_path, monkeypatch, number):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'evil.py').write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    (tmp_path / 'evil.yml').write_text(f'x: !!python/object/apply:os.system ["touch {tmp_path / "trace"}"]\n')
    suffix, text = list(code(tmp_path))[number]
    path = tmp_path / f'config{suffix}'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'config{suffix}: ') as caught:
        load_config(str(path))
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'trace').exists()


LAZY = """
from mmengine.config import read_base
from mmengine.hooks import EMAHook
from mobileone_ext.backbone import MobileOne

with read_base():
    from .lazy_base import *

width = 10
model.update(backbone=dict(type=MobileOne, arch='s0'), head=dict(num_classes=width))
custom_hooks = [dict(type=EMAHook, momentum=0.1)]
"""
LAZY_BASE = """
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead
from mmengine.runner import EpochBasedTrainLoop

model = dict(
    type=ImageClassifier,
    backbone=dict(),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=1000, in_channels=1024),
)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=3)
"""


def test_read_base_gives_the_config_that_text_would(written):
    written(LAZY_BASE, 'lazy_base.py')
    config = load_config(written(LAZY, 'lazy.py'))
    assert config.model.backbone == dict(type='mobileone_ext.MobileOne', arch='s0')
    assert config.model.type == 'mmpretrain.ImageClassifier' and config.model.head.num_classes == 10
    assert config.custom_hooks[0].type.endswith('EMAHook') and 'width' not in config
    from mobileone_ext.deploy.fuse import build_model

    assert type(build_model(config, 'branched').backbone).__module__ == 'mobileone_ext.backbone'
    with pytest.raises(ValueError, match="'modle': nothing reads it; did you mean 'model'"):
        load_config(written(LAZY + 'modle = dict()\n', 'slip.py'))


def test_what_is_wrong_while_building_is_one_line():
    with pytest.raises(ValueError, match='x.py: does not build: AssertionError: a b') as caught, building('x.py'):
        raise AssertionError('a\nb')
    assert '\n' not in str(caught.value)
    with pytest.raises(OSError, match='as it is'), building('x.py'):
        raise OSError('as it is')


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: OPTIMIZERS.build(dict(type='SGD', params=[{}], lrr=0.1)), "'lrr'; did you mean 'lr'?"),
        (
            lambda: OPTIMIZERS.build(dict(type='Adam', params=[{}], learning_rate=0.1)),
            "'learning_rate'; known are amsgrad, betas, ",
        ),
        (lambda: MODELS.build(dict(type='mobileone_ext.MobileOne', archh='s0')), "'archh'; did you mean 'arch'?"),
        (
            lambda: MODELS.build(dict(type='mmpretrain.ResNet', depth=18, initcfg=1)),
            "'initcfg'; did you mean 'init_cfg'?",
        ),
        (lambda: HOOKS.build(dict(type='LoggerHook', intervall=1)), "'intervall'; did you mean 'interval'?"),
        (lambda: DataLoader([], shuffel=True), "'shuffel'; did you mean 'shuffle'?"),
    ],
)
def test_a_key_that_a_part_does_not_take_has_a_hint(build, message):
    """Of any part, by what it takes itself and what its bases take."""
    with pytest.raises(ValueError, match='x.py: does not build: ') as caught, building('x.py'):
        build()
    assert message in str(caught.value)


def test_a_config_without_a_test_set_says_so(tiny):
    require_data(tiny, 'test_dataloader')
    with pytest.raises(ValueError, match='has no test set: test_evaluator missing'):
        require_data(override(tiny, {'test_evaluator': None}), 'test_dataloader')


def test_preprocessor_at_the_top_goes_into_the_model(written):
    config = load_config(written("model = dict(type='ImageClassifier')\ndata_preprocessor = dict(mean=[1, 2, 3])\n"))
    assert config.model.data_preprocessor == dict(mean=[1, 2, 3]) and 'data_preprocessor' not in config
