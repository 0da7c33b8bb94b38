"""The study of accuracy over minutes: its table, and a hundred photos for one epoch by both configs."""

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from PIL import Image

from research.minutes.study import table, validations
from research.training import read_rows

CONFIG = ROOT / 'configs/mobileone_s0_imagenette_96px.py'


def test_table_has_a_line_for_each_config():
    rows = [
        dict(config=name, seed=str(seed), minutes=minutes, top1=top1)
        for name, seed, minutes, top1 in (
            ('a', 0, '8.00', '40.00'),
            ('b', 0, '8.50', '20.00'),
            ('a', 1, '9.00', '42.00'),
        )
    ]
    assert table(rows).splitlines()[2:] == [
        '| a | 2 | 8.5 | 41.00 | 1.41 | 40.00, 42.00 |',
        '| b | 1 | 8.5 | 20.00 | - | 20.00 |',
    ]


@pytest.mark.parametrize('steps_per_epoch, interval', [(2, 1), (1, 2), (None, 2)])
def test_a_validation_is_placed_after_the_steps_before_it(steps_per_epoch, interval):
    logged = {'train/time': [60.0, 120.0, 60.0, 60.0], 'val/accuracy/top1': [20.0, 45.0]}
    scalars = {name: dict(history_buffer=torch.tensor(values)) for name, values in logged.items()}
    run = {} if steps_per_epoch is None else dict(steps_per_epoch=steps_per_epoch)
    checkpoint = dict(meta=dict(run=run), message_hub=dict(log_scalars=scalars))
    config = Config(dict(train_cfg=dict(val_interval=interval)))
    assert validations(checkpoint, config) == [(3.0, 20.0), (5.0, 45.0)]


@pytest.fixture
def photos(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split in ('train', 'val'):
        for label in range(10):
            folder = tmp_path / 'photos' / split / f'n{label}'
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = torch.randint(256, (60, 60, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f'{number}.jpg')
    return tmp_path / 'photos'


def run(run_tool, photos, config, *options):
    arguments = photos, photos.parent / 'out', config, '--seeds', 0
    options = ('val_dataloader.dataset.indices=20', 'train_dataloader.batch_size=20', *options)
    code, printed = run_tool('research.minutes', *arguments, '--cfg-options', *options)
    assert code == 0, printed
    (row,) = read_rows(photos.parent / 'out' / 'runs.csv')
    assert row['num_images'] == '100' and len(row['curve'].split()) == 1
    assert (photos.parent / 'out' / 'minutes.png').read_bytes()[:4] == b'\x89PNG'
    return row


@pytest.mark.slow
def test_an_epoch_on_a_hundred_photos(run_tool, photos):
    row = run(run_tool, photos, CONFIG, 'train_cfg.max_epochs=1')
    again, printed = run_tool('research.minutes', photos, photos.parent / 'out', CONFIG, '--seeds', 0)
    assert again == 0 and 'run.log' not in printed  # a finished run is not repeated
    assert 0 < float(row['minutes']) < 5


@pytest.mark.slow
def test_an_epoch_by_mmpretrain(run_tool, photos):
    config = CONFIG.with_name('mobileone_s0_imagenette_96px_mmpretrain.py')
    options = 'train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4'
    run(run_tool, photos, config, *options)
