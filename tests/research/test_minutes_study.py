"""The study of accuracy over minutes: what its arms change, its table, and an epoch of two of them."""

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mobileone_ext.config import load_config
from research.minutes import study
from research.minutes.study import ARMS, SCALAR, SEEDS, plan, table, validations
from research.training import read_rows


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    base = load_config('configs/mobileone_s0_imagenette_64px.py')
    folder = tmp_path_factory.mktemp('minutes')
    return {(run.variant, run.seed): Config.fromstring(run.config_text, '.py') for run in plan(base, folder)}


def test_arms_differ_by_what_their_names_say(configs):
    assert [*configs] == [(arm, seed) for seed in SEEDS for arm in ARMS]

    def facts(arm):
        config = configs[arm, 2]
        hooks = {hook['type'].split('.')[-1] for hook in config.custom_hooks}
        return dict(
            network=config.model.backbone.type.split('.')[0],
            branches=config.model.backbone.get('use_skip', True),
            grows='CurriculumHook' in hooks,
            channels_last=bool(config.default_hooks.get('channels_last')),
            loader=config.train_dataloader.dataset.type,
        )

    first = facts('this project')
    changed = {arm: {key for key, value in facts(arm).items() if value != first[key]} for arm in ARMS}
    assert changed == {
        'this project': set(),
        'images of full size': {'grows'},
        "mmpretrain's network": {'network'},
        'mmpretrain as shipped': {'network', 'grows', 'channels_last', 'loader'},
        'plain network': {'branches'},
    }


def test_averages_look_back_over_the_same_share_and_the_schedule_fills_the_run(configs):
    for (arm, seed), config in configs.items():
        epochs = ARMS[arm][0]
        (momentum,) = (hook['momentum'] for hook in config.custom_hooks if hook['type'] == 'EMAHook')
        assert 1 / momentum / (50 * epochs) == pytest.approx(1 / 15)
        ends = [part.end for part in config.param_scheduler]
        assert config.randomness.seed == seed and max(ends) == config.train_cfg.max_epochs == epochs
        assert epochs % config.train_cfg.val_interval == 0 and config.train_dataloader.num_workers == 0


def test_table_compares_arms_that_are_complete():
    tops = {'this project': (40, 42, 41), 'plain network': (45.0, 46, 47), 'images of full size': (39, 41)}
    rows = [
        dict(arm=arm, seed=str(seed), minutes='5.00', top1=f'{top:.2f}')
        for arm, found in tops.items()
        for seed, top in enumerate(found)
    ]
    # Welch by hand: 5 +- t(0.99375; 4 degrees) * sqrt(2 / 3), t = 4.3147
    assert table(rows).splitlines()[2:] == [
        '| this project | 750 | 3 | 5.0 | 41.00 | 1.00 | 40.00, 42.00, 41.00 | |',
        '| images of full size | 700 | 2 | 5.0 | 40.00 | 1.41 | 39.00, 41.00 | |',
        '| plain network | 1250 | 3 | 5.0 | 46.00 | 1.00 | 45.00, 46.00, 47.00 | +5.00 (1.48 to 8.52) |',
    ]


def test_a_validation_is_placed_after_the_steps_before_it():
    logged = {SCALAR: [60.0, 120.0, 60.0, 60.0], 'val/accuracy/top1': [20.0, 45.0]}
    scalars = {name: dict(history_buffer=torch.tensor(values)) for name, values in logged.items()}
    checkpoint = dict(meta=dict(run=dict(steps_per_epoch=1)), message_hub=dict(log_scalars=scalars))
    config = Config(dict(train_cfg=dict(val_interval=2)))
    assert validations(checkpoint, config) == ([(3.0, 20.0), (5.0, 45.0)], 5.0)


@pytest.mark.slow
def test_an_epoch_on_a_hundred_photos(run_tool, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for split in ('train', 'val'):
        for label in range(10):
            folder = tmp_path / 'photos' / split / f'n{label}'
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = torch.randint(256, (60, 60, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f'{number}.jpg')
    arms = {arm: (1, ARMS[arm][1]) for arm in ('this project', 'mmpretrain as shipped')}
    monkeypatch.setattr(study, 'ARMS', arms)
    monkeypatch.setattr(study, 'SEEDS', (0,))
    options = ('val_dataloader.dataset.indices=20', 'train_dataloader.dataset.indices=100')
    arguments = ('research.minutes', tmp_path / 'photos', tmp_path / 'out', '--cfg-options', *options)
    code, printed = run_tool(*arguments, 'train_dataloader.batch_size=50')
    assert code == 0, printed
    rows = read_rows(tmp_path / 'out' / 'runs.csv')
    assert [(row['arm'], row['seed']) for row in rows] == [(arm, '0') for arm in arms]
    for row in rows:
        assert row['num_images'] == '100' and 0 < float(row['minutes']) < 5
        assert float(row['curve'].split()[-1].split(':')[0]) == pytest.approx(float(row['minutes']), abs=0.01)
    assert (tmp_path / 'out' / 'minutes.png').read_bytes()[:4] == b'\x89PNG'
    again, printed = run_tool(*arguments)
    assert again == 0 and 'run.log' not in printed  # a finished run is not repeated
