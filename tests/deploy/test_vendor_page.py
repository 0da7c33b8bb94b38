"""docs/vendor.md: every command on the page runs; the files are what the page says."""

import re
import shlex

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.deploy import fuse
from mobileone_ext.deploy.quantization.chain import layers_of

PAGE = (ROOT / 'docs' / 'vendor.md').read_text()
COMMANDS = re.findall(r'^    python tools/(\w+)\.py (.*)$', PAGE, re.MULTILINE)
FORMS = ('s0.pt', 's0.onnx', 's0_half.onnx', 's0_percentile.onnx', 's0_kl.onnx', 's0_mse.onnx')


def write_photos(folder, count):
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        squares = Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8))
        squares.resize((70, 60), Image.Resampling.BILINEAR).save(folder / f'{number}.png')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_every_command_of_the_page_runs(run_tool, tmp_path, monkeypatch):
    model = fuse.build_model(cli.load_config('configs/mobileone_s0_8xb32.py'), 'fused')
    for layer in layers_of(model):
        torch.nn.init.kaiming_normal_(layer.linear.weight)
    torch.save(model.state_dict(), tmp_path / 's0.pth')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    write_photos(tmp_path / 'calibration' / 'photos', 50)
    write_photos(tmp_path / 'data' / 'imagenet' / 'val', 6)
    (tmp_path / 'data' / 'imagenet' / 'meta').mkdir()
    (tmp_path / 'data' / 'imagenet' / 'meta' / 'val.txt').write_text(''.join(f'{i}.png {i}\n' for i in range(6)))
    single = 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False'
    tested = []
    for tool, arguments in COMMANDS:
        more = ('--cfg-options', *single, 'test_dataloader.dataset.ann_file=meta/val.txt') if tool == 'test' else ()
        code, printed = run_tool(tool, *shlex.split(arguments), *more)
        assert code == 0, f'{tool} {arguments}\n{printed}'
        if tool == 'export':
            assert ('0.9e9: 0.611' in printed) == ('--flops' in arguments)
        if tool == 'test':
            tested.append(arguments.split()[-1])
            assert 'top1' in printed and 'top5' in printed, printed
    assert sorted(tested) == sorted(FORMS)
    for name in ('s0.onnx', 's0_half.onnx'):
        proto = onnx.load(tmp_path / name)
        shape = [length.dim_value for length in proto.graph.input[0].type.tensor_type.shape.dim]
        assert ([item.version for item in proto.opset_import if not item.domain], shape) == ([10], [1, 3, 224, 224])
    assert (tmp_path / 's0_prepared.onnx').is_file()


def test_the_page_has_the_commands():
    assert [tool for tool, _ in COMMANDS].count('quantize') == 4
    for method in ('percentile', 'entropy', 'mse'):
        assert f'--num-images 50 --ranges {method}' in PAGE
