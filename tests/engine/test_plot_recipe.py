"""The paper's schedule, read from built optimizers, schedulers, hooks and pipelines; and its picture."""

from pathlib import Path

import pytest
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.engine.plot_recipe import draw, preview, summary

CONFIGS = Path(__file__).parents[2] / 'configs'

# Epoch, learning rate, weight decay of weights and biases at the start of the epoch. By hand from the paper's
# schedule: cosine from epoch 5 to 300 between 0.1 and 1e-6, cosine from 0 to 300 between 1e-4 and 1e-5. Epoch 4
# lies in the warm-up: 80 of 99 steps from 1e-4 to 0.1 at 20 steps an epoch.
PAPER = [
    (0, 1e-4, 1e-4),
    (4, 0.0808272727, 9.9960527e-5),
    (5, 0.1, 9.9938329e-5),
    (37, 0.0971246927, 9.6664176e-5),
    (112, 0.0709030506, 7.2438201e-5),
    (150, 0.0513315128, 5.5e-5),
    (299, 3.8352233e-6, 1.00024674e-5),
]
SIZES = {0: 160, 4: 160, 5: 160, 37: 192, 112: 224, 150: 224, 299: 224}


@pytest.fixture(scope='module', params=['s0', 's1', 's2', 's3', 's4'])
def variant(request):
    config = cli.load_config(str(CONFIGS / f'mobileone_{request.param}_8xb32.py'))
    return request.param, preview(config, images=1)


def test_schedule_of_the_paper(variant):
    name, actual = variant
    assert len(actual.epochs) == 300
    for epoch, lr, weight_decay in PAPER:
        at, step = actual.epochs[epoch], epoch * actual.steps
        assert actual.lr[step] == pytest.approx(lr, rel=1e-7)
        assert actual.weight_decay['bias_weight'][step] == pytest.approx(weight_decay, rel=1e-7)
        assert at.ema == pytest.approx(0.9995)
        assert at.size == SIZES[epoch]
        assert at.strength == (None if name in ('s0', 's1') else {160: 0.3, 192: 0.7, 224: 1.0}[at.size])
    assert set(actual.weight_decay['norm']) == {0}
    assert [(stage.first, stage.last) for stage in actual.stages] == [(0, 36), (37, 111), (112, 299)]
    assert [stage.images[0].shape for stage in actual.stages] == [(size, size, 3) for size in (160, 192, 224)]


def test_absent_data_is_named_and_the_plot_drawn(variant, tmp_path):
    name, actual = variant
    assert 'data/imagenet' in actual.stand_in
    lines = summary(actual)
    assert [line.split(':')[0] for line in lines] == ['epochs 0-36', 'epochs 37-111', 'epochs 112-299']
    assert '192 px' in lines[1]
    if name == 's2':
        draw(actual, name, tmp_path / 'recipe.png')
        assert Image.open(tmp_path / 'recipe.png').size[0] > 1000


def test_a_config_without_a_curriculum_has_one_stage():
    (stage,) = preview(cli.load_config(str(CONFIGS / 'mobileone_s0_digits.py')), images=2).stages
    assert (stage.first, stage.last, stage.name) == (0, 11, '64 px')
    assert [image.shape for image in stage.images] == [(64, 64, 3)] * 2


def test_curves_are_those_of_the_run(digits, tmp_path):
    """The digits at their 45 steps an epoch: warm-up from step to step, the cosine down to its end."""
    config = cli.load_config(str(CONFIGS / 'mobileone_s0_digits.py'))
    config.train_dataloader.dataset.data_root = str(digits)
    actual = preview(config, images=10)
    assert actual.steps == 45 and len(actual.lr) == 12 * 45
    assert actual.lr[:2] == [pytest.approx(0.0005), pytest.approx(0.0005 + 0.0495 / 44)]
    assert actual.lr[44:46] == [pytest.approx(0.05), pytest.approx(0.05)]
    assert 0 < actual.lr[-1] == pytest.approx(5.0e-7, rel=0.02)  # 0.05 (1 + cos(pi 494 / 495)) / 2
    images = actual.stages[0].images
    assert len({image.tobytes() for image in images}) == 10
    assert 'lr 0.0005 -> 0.05 -> 5.03e-07; weight decay 0.0001 of bias and weight, 0 of norm' in summary(actual)[0]
    draw(actual, 'digits', tmp_path / 'r.jpg')
    assert Image.open(tmp_path / 'r.jpg').format == 'JPEG'
    with pytest.raises(ValueError, match="'doc' is not supported"):
        draw(actual, 'digits', tmp_path / 'r.doc')


def test_it_is_drawn_without_optional_packages(run_tool, tmp_path, without_scikit_learn):
    code, printed = run_tool('plot_recipe', 'configs/mobileone_s0_8xb32.py', '--out', tmp_path / 'r.png')
    assert code == 0 and 'a photograph stands in' in printed and (tmp_path / 'r.png').exists()
