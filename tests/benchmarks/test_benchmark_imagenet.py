"""The cost of ImageNet: known figures, shares against the config, arithmetic."""

import pytest
from benchmarks import imagenet, traffic
from conftest import ROOT, only_line

from mobileone_ext.backbone import MobileOne
from mobileone_ext.cli import load_config
from mobileone_ext.recipe.curriculum import read_stages


@pytest.mark.parametrize('method, gigabytes', [('branches', 181), ('moments', 30), ('fused network', 21)])
def test_bytes_of_a_step_of_s0(method, gigabytes):
    assert round(256 * imagenet.bytes_of_an_image('s0', method, 224) / 1e9) == gigabytes


def test_a_stage_takes_the_epochs_that_the_config_gives_it():
    (hook,) = (hook for hook in load_config('configs/mobileone_s0_8xb32.py').custom_hooks if 'stages' in hook)
    stages = read_stages(hook.stages, imagenet.EPOCHS)
    assert [(stage.size, stage.epoch) for stage in stages] == list(imagenet.STAGES)
    assert imagenet.shares() == pytest.approx({160: 37 / 300, 192: 75 / 300, 224: 188 / 300})


def test_hours_and_rates():
    # 300 x 1,281,167 photos at 1,000 a second; at half of that for 37 epochs more: 37 x 1,281,167 / 1,000 s more.
    assert imagenet.hours({160: 1000, 192: 1000, 224: 1000}) == pytest.approx(106.764, abs=1e-3)
    assert imagenet.hours({160: 500, 192: 1000, 224: 1000}) == pytest.approx(106.764 * (1 + 37 / 300), abs=1e-3)
    # 67.6 ms for the maps of 256 images, as 181 GB at 2.68 TB/s; products at 247 T a second; the host takes longer.
    step = imagenet.step('s0', 'branches', 224, 256, 2.68e12)
    assert step.memory == pytest.approx(67.6, rel=0.01) and step.products == pytest.approx(0.8025 / 0.24725, rel=0.01)
    assert step.total == step.host == imagenet.HOST['s0']['branches']
    assert imagenet.images_per_second('s0', 'branches', 224, 256, 2.68e12) == pytest.approx(256e3 / step.host)
    assert imagenet.step('s0', 'branches', 224, 1024, 2.68e12).total == pytest.approx(4 * 70.8, rel=0.01)


def test_published_figures_check_the_counting():
    """Branched S0: 3,552 images a second where its maps alone, read and written at 806 GB/s, would allow 3,373."""
    assert imagenet.checked()['s0'] == pytest.approx((3552 / 3373, 18891 / 26433), rel=0.001)
    assert imagenet.correction() == pytest.approx(1.473, abs=0.001)


def test_the_page_has_the_hours_that_the_command_prints(run_tool, monkeypatch):
    """In seconds: each network is built once for each image size."""
    built = []
    monkeypatch.setattr(traffic, 'MobileOne', lambda arch: built.append(arch) or MobileOne(arch))
    code, printed = run_tool('benchmark', 'imagenet')
    assert len(built) <= len(imagenet.VARIANTS) * len(imagenet.STAGES)
    assert code == 0
    page = (ROOT / 'docs/imagenet.md').read_text()
    tables = printed.split('Calculated: ')[1:]
    assert len(tables) == len(batches := (32, 256))
    for batch, table in zip(batches, tables):
        rows = [line.split(' | ') for line in table.splitlines() if '| branches |' in line]
        hours = [row[7] for row in rows[: len(imagenet.VARIANTS)]]
        assert f'| 8 x {batch} images | {" | ".join(hours)} |' in page
    assert '4.8 from 640 x 500, 2.6 from 500 x 375, 1.9 from 389 x 292' in printed  # as the page's bold line
    assert 'in 4.8 hours from photos of 640 x 500, in 2.6 from 500 x 375, and in 1.9 from photos resized once' in page
    moments = [line.split(' | ')[7] for line in printed.splitlines() if '| moments |' in line and line.count('|') > 9]
    lowest, highest = f'{min(map(float, moments)):.0f}', f'{max(map(float, moments)):.0f}'
    assert (lowest, highest) == ('7', '63') and 'take longer here, 53 to 63 hours and 7 to 8' in page


@pytest.mark.parametrize('option', [('--gpus', 0), ('--batch-size', 0), ('--bandwidth', 'nan'), ('--bandwidth', 0)])
def test_nothing_to_calculate_is_refused(run_tool, option):
    code, printed = run_tool('benchmark', 'imagenet', *option)
    assert code == 1 and option[0] in only_line(printed)
