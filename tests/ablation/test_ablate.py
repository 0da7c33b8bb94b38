"""Studies: reading, overriding, running with fake tools, and the table."""

import json
import textwrap
from pathlib import Path

import pytest
from mmengine.config import Config

from mobileone_ext import cli
from mobileone_ext.ablation import ablate as runs_module
from mobileone_ext.ablation.ablate import plan, run_study
from mobileone_ext.ablation.report import summarize
from mobileone_ext.ablation.study import choose, read_study
from mobileone_ext.config import override

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / 'configs/ablations').glob('*.py'))
BASES = ['mobileone_s0_8xb32', 'mobileone_s2_8xb32', 'mobileone_s0_digits', 'mobileone_s0_imagenette']


@pytest.fixture
def base():
    return cli.load_config(str(ROOT / 'configs/mobileone_s0_8xb32.py'))


@pytest.fixture
def study_file(tmp_path):
    def write(text):
        path = tmp_path / 'study.py'
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.mark.parametrize('base_name', BASES)
@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_every_study_fits_every_base(path, base_name, tmp_path):
    config = cli.load_config(str(ROOT / f'configs/{base_name}.py'))
    study = read_study(str(path))
    runs = plan(study, config, [0, 1], tmp_path)
    assert [(run.variant, run.seed) for run in runs] == [(v, seed) for v in study.variants for seed in (0, 1)]
    assert len({run.config_text for run in runs}) == len(runs)
    for run in runs:
        assert Config.fromstring(run.config_text, '.py').randomness.seed == run.seed


@pytest.mark.parametrize('base_name', BASES)
def test_recipe_study_augments_where_it_says_so(base_name, tmp_path):
    config = cli.load_config(str(ROOT / f'configs/{base_name}.py'))
    study = read_study(str(ROOT / 'configs/ablations/recipe.py'))
    for run in plan(study, config, [0], tmp_path):
        pipeline = Config.fromstring(run.config_text, '.py').train_dataloader.dataset.pipeline
        augmentations = [step.type for step in pipeline if 'Augment' in step.type]
        expected = ['mobileone_ext.AutoAugment'] if run.variant in ('+ AutoAugment', 'all') else []
        assert augmentations == expected, run.variant
        assert pipeline[-1].type == 'PackInputs'


@pytest.mark.parametrize(
    'text, message',
    [
        ("variants = {'a': {}}", "missing 1 required positional argument: 'title'"),
        ("title = 't'\nvariants = {}", 'a study has variants'),
        ("title = 't'\nvariants = {'a': {}, 'a': {}}", "line 2: 'a' is given twice"),
        ("title = 't'\nvariants = {'a': {'x.y': 1, 'x.y': 2}}", "'x.y' is given twice"),
        ("title = 't'\nvariants = dict(a={}, a={})", 'SyntaxError: keyword argument repeated: a .*line 2'),
        ("title = 't'\nvariants = dict(a=b)", "is no study: NameError: name 'b'"),
        ("title = 't'\nvariants = ['a']", 'is no study: AttributeError'),
        ('import nowhere_to_be_found', 'is no study: ModuleNotFoundError'),
        ("title = 't'\nvariants = " + '[' * 10_000, 'is no study: '),
        ("title = 't'\nvariants = {'a b': {}, 'a_b': {}}", 'each has a folder'),
        ("title = 't'\nvariant = {}\nvariants = {'a': {}}", "unexpected keyword argument 'variant'"),
        ("title = 't'\nvariants = {'a': {}}\npaper = dict(numbers={'b': 1})", "'b' is no variant"),
    ],
)
def test_bad_study(study_file, text, message):
    with pytest.raises(ValueError, match=message):
        read_study(study_file(text))


def test_overrides_reach_dicts_and_lists(base):
    changed = override(
        base,
        {
            'model.backbone.use_skip': False,
            'custom_hooks.EMAHook.momentum': 0.1,
            'custom_hooks.CurriculumHook': None,
            'custom_hooks.FreezeNormHook': dict(type='mobileone_ext.FreezeNormHook', epoch=3),
            'param_scheduler.0.end': 7,
            'param_scheduler.CosineAnnealingLR.T_max': lambda config: config.train_cfg.max_epochs - 1,
        },
    )
    assert changed.model.backbone == dict(type='mobileone_ext.MobileOne', arch='s0', use_skip=False)
    assert [hook['type'] for hook in changed.custom_hooks] == ['EMAHook', 'mobileone_ext.FreezeNormHook']
    assert changed.custom_hooks[0]['momentum'] == 0.1
    assert (changed.param_scheduler[0]['end'], changed.param_scheduler[1]['T_max']) == (7, 299)
    assert 'use_skip' not in base.model.backbone and len(base.custom_hooks) == 2


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('model.backbon.use_skip', False, "no 'backbon' there.*backbone"),
        ('custom_hooks.EmaHook.momentum', 0.1, "nothing of type 'EmaHook'.*EMAHook"),
        ('custom_hooks.EMAHook', dict(type='Other'), "must be a dict with type 'EMAHook'"),
        ('train_cfg.max_epoch', 1, "no 'max_epoch' there; did you mean 'max_epochs'"),
        ('param_scheduler.9.end', 1, 'index 9 of a list of 3'),
        ('train_cfg.max_epochs.x', 1, 'nothing is inside it'),
        ('trian_cfg', dict(), "nothing reads it; did you mean 'train_cfg'"),
    ],
)
def test_an_unknown_override_key_stops_before_anything_runs(base, study_file, tmp_path, key, value, message):
    study = read_study(study_file(f"title = 't'\nvariants = {{'good': {{}}, 'bad': {{{key!r}: {value!r}}}}}"))
    with pytest.raises(ValueError, match=f"variant 'bad'.*{message}"):
        plan(study, base, [0], tmp_path / 'work')
    assert not (tmp_path / 'work').exists()


def test_an_override_by_type_needs_one_of_that_type(base):
    base.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    with pytest.raises(ValueError, match="2 of type 'EMAHook' there; give the index"):
        override(base, {'custom_hooks.EMAHook.momentum': 0.1})


def test_variants_do_not_share_what_they_override(base):
    hook, epochs = 'custom_hooks.FreezeNormHook', [1, 2]
    overrides = {hook: dict(type='FreezeNormHook', epoch=3), f'{hook}.epoch': epochs}
    override(base, overrides).custom_hooks[-1]['epoch'].append(3)
    assert epochs == [1, 2] and overrides[hook]['epoch'] == 3


FAKE_TOOLS = """
import json, pathlib, sys
if sys.argv[1] == 'reparam':
    report = pathlib.Path(sys.argv[sys.argv.index('--report') + 1])
    seed = int(report.parent.name[-1])
    report.write_text(json.dumps(dict(top1_after=70.0 + seed, num_images=8, params_after=10, changed_predictions=0)))
    sys.exit()
config, folder = pathlib.Path(sys.argv[4]), pathlib.Path(sys.argv[6])
if "'use_skip': False" in config.read_text() and not pathlib.Path('{fixed}').exists():
    print('error: out of luck'); sys.exit(1)
with open('{calls}', 'a') as file: file.write(str(folder) + '\\n')
"""


def test_a_failing_variant_is_marked_and_the_study_goes_on(base, study_file, tmp_path, monkeypatch):
    study = read_study(
        study_file(
            "title = 'T'\nvariants = {'good': {}, 'bad': {'model.backbone.use_skip': False}, 'last': "
            "{'model.backbone.use_scale': False}}\npaper = dict(source='P', numbers={'good': 71.4})"
        )
    )
    calls, fixed, tools, work = (tmp_path / name for name in ('calls', 'fixed', 'tools', 'work'))
    tools.write_text(FAKE_TOOLS.replace('{calls}', str(calls)).replace('{fixed}', str(fixed)))
    monkeypatch.setattr(runs_module, 'TOOLS', [str(tools)])
    state = {'meta': {'run': {}}}
    monkeypatch.setattr(runs_module, 'latest_checkpoint', lambda folder: (folder / 'epoch_1.pth', state))
    monkeypatch.setattr(runs_module, 'training_minutes', lambda checkpoint: 1.5 if 'good' in str(checkpoint) else None)

    runs = plan(study, base, [0, 2], work)
    assert run_study(study, 'base.py', runs, work, 'none', 1) == 2
    table = (work / 'results.md').read_text()
    assert '| good | 71.00 ± 1.41 | 2 | | 71.4 | 10 | | | 1.5 |' in table
    assert '| bad | failed | 0 (2 failed) |' in table
    assert '- bad, seed 0: out of luck' in table
    assert '| last | 71.00 ± 1.41 | 2 | +0.00 | | 10 | | | |' in table
    assert (work / 'results.csv').read_text().splitlines()[3].startswith('bad,0,failed,')
    assert (work / 'results.png').stat().st_size > 1000

    fixed.touch()
    before = calls.read_text().splitlines()
    assert run_study(study, 'base.py', plan(study, base, [0, 2], work), work, 'none', 1) == 0
    assert calls.read_text().splitlines()[len(before) :] == [str(work / 'bad/seed0'), str(work / 'bad/seed2')]
    assert 'failed' not in (work / 'results.md').read_text()

    other = override(base, {'train_cfg.max_epochs': 3})
    with pytest.raises(ValueError, match='another config'):
        plan(study, other, [0], work)


def test_some_of_the_variants(study_file):
    study = read_study(study_file("title = 'T'\nvariants = {'a': {}, 'b': {}, 'c': {}}"))
    assert list(choose(study, ['c', 'a']).variants) == ['a', 'c']
    with pytest.raises(ValueError, match="no variant 'd'; it has a, b, c"):
        choose(study, ['a', 'd'])


def test_summary_is_mean_and_sample_deviation():
    rows = [dict(variant='a', seed=s, status='done', top1_after=top1) for s, top1 in enumerate((1.0, 2.0, 6.0))]
    rows.append(dict(variant='a', seed=3, status='failed', reason='r'))
    actual = summarize('a', rows)
    assert (actual.mean, actual.runs, actual.failures) == (3.0, 3, ['seed 3: r'])
    assert actual.std == pytest.approx(7**0.5)
    assert json.dumps(actual.row) == json.dumps(rows[0])
