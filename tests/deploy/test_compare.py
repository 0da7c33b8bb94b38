"""What is called the same: literal differences, the bounds, and NaN, which passes nowhere."""

import json

import pytest
import torch
from conftest import TINY, data_options, only_line

from mobileone_ext import cli
from mobileone_ext.deploy import fuse
from mobileone_ext.deploy.compare import Difference, top_accuracies
from mobileone_ext.files import json_text

NOT_NUMBERS = [float('nan'), float('inf'), -float('inf')]


def difference(*batches):
    actual = Difference()
    for expected, other in batches:
        actual.add(torch.tensor(expected), torch.tensor(other))
    return actual


def test_differences_of_two_batches():
    actual = difference(([[1.0, 4.0], [2.0, 0.0]], [[1.0, 4.5], [2.0, 0.25]]), ([[-8.0, 1.0]], [[2.0, 1.0]]))
    assert actual == Difference(num_images=3, changed_predictions=1, max_abs_diff=10.0, max_rel_diff=1.25)
    assert difference(([[0.0, 0.0]], [[0.0, 0.0]])).max_rel_diff == 0


def test_predictions_of_several_labels_are_those_above_0():
    expected = torch.tensor([[3.0, 1.0, -1.0], [3.0, 1.0, -1.0], [-3.0, -1.0, -2.0]])
    actual = torch.tensor([[1.0, 3.0, -1.0], [3.0, 1.0, 0.5], [-3.0, -2.0, -1.0]])
    for multi_label, changed in ((True, 1), (False, 2)):
        difference = Difference(multi_label)
        difference.add(expected, actual)
        assert difference.changed_predictions == changed


def test_bounds():
    two_flips = difference(([[1.0, 0.0]] * 5, [[1.0, 0.0]] * 3 + [[0.5, 0.75]] * 2))
    for allowed in (2, 3, None):
        two_flips.check(max_flips=allowed)
    for allowed in (0, 1):
        with pytest.raises(ValueError, match=rf'2 of 5 predictions changed \(allowed {allowed}\)'):
            two_flips.check(max_flips=allowed)
    two_flips.check(max_flips=None, tolerance=0.75)
    with pytest.raises(ValueError, match='outputs differ by 7.5e-01 of the largest'):
        two_flips.check(max_flips=None, tolerance=0.7499)
    with pytest.raises(ValueError, match='no images'):
        Difference().check()


@pytest.mark.parametrize('number', NOT_NUMBERS)
@pytest.mark.parametrize('side', [0, 1])
@pytest.mark.parametrize('place', [(0, 0), (2, 1)])
def test_outputs_that_are_not_finite_are_refused(number, side, place):
    pair = torch.ones(2, 3, 2)
    pair[(side, *place)] = number
    actual = Difference()
    with pytest.raises(ValueError, match=f'{("old", "new")[side]} has outputs that are not finite.* 1 of 3 images'):
        actual.add(*pair, names=('old', 'new'))
    assert actual.num_images == 0
    with pytest.raises(ValueError, match='not finite'):
        top_accuracies(pair[side], torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize('number', NOT_NUMBERS)
def test_json_holds_numbers_alone(number):
    with pytest.raises(ValueError, match='not JSON compliant'):
        json_text(dict(rows=[dict(top1=1.0), dict(top1=number)]))
    assert json.loads(json_text(dict(a=[1, (2.5, None)], b='nan'))) == dict(a=[1, [2.5, None]], b='nan')


def overflowing(where, path):
    """A checkpoint of the tiny network whose float32 outputs overflow on any image, though all weights are finite."""
    torch.manual_seed(0)
    model = fuse.build_model(cli.load_config(TINY), 'branched')
    for norm in model.backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(norm.bias, 1.0)  # features are positive then
            if where == 'backbone':
                norm.weight.data *= 1e15
    torch.nn.init.constant_(model.head.fc.weight, 3e38 if where == 'head' else 1.0)
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize('where', ['head', 'backbone'])
@pytest.mark.parametrize('tool', ['reparam', 'export', 'test', 'predict', 'quantize'])
def test_tools_refuse_a_network_that_overflows(tool, where, digits, run_tool, tmp_path):
    checkpoint = overflowing(where, tmp_path / 'net.pth')
    images = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*.png')))
    out = tmp_path / {'export': 'out.onnx', 'quantize': 'out.onnx', 'reparam': 'out.pth'}.get(tool, 'out.json')
    more = {
        'reparam': [out, '--report', tmp_path / 'report.json', '--max-flips', 'any'],
        'export': [out, '--size', 32, '--images', images],
        'test': ['--out', out, '--work-dir', tmp_path / 'work'],
        'predict': [images, '--out', out],
        'quantize': [out, '--size', 32, '--calib', images, '--num-calib', 4, '--report', tmp_path / 'report.json'],
    }
    code, printed = run_tool(tool, TINY, checkpoint, *more[tool], '--cfg-options', *data_options(digits))
    assert code == 1
    assert 'not finite (NaN or infinite)' in only_line(printed)
    assert not out.exists() and not (tmp_path / 'report.json').exists()


def test_noise_tells_of_an_overflow_where_there_are_no_images(run_tool, tmp_path):
    checkpoint = overflowing('backbone', tmp_path / 'net.pth')
    code, printed = run_tool('reparam', TINY, checkpoint, tmp_path / 'out.pth', '--no-eval')
    assert code == 1 and 'the fused network has outputs that are not finite' in only_line(printed)
    assert not (tmp_path / 'out.pth').exists()


def test_flips_that_may_change_are_a_number_or_any(run_tool, tmp_path):
    arguments = ('reparam', TINY, tmp_path / 'net.pth', tmp_path / 'out.pth', '--max-flips')
    code, printed = run_tool(*arguments, -1)
    assert code == 1 and '--max-flips' in only_line(printed) and '-1' in printed
    code, printed = run_tool(*arguments, 'any')
    assert code == 1 and 'no such' in only_line(printed)  # the checkpoint is missed, the option is not
