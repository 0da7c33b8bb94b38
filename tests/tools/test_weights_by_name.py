"""Every tool that asks for a checkpoint takes an address: downloaded once, for all of them."""

import pytest
from conftest import TINY, data_options
from server import Server

CASES = {
    'test': lambda url, out, photos: ('test', TINY, url, '--work-dir', out),
    'reparam': lambda url, out, photos: ('reparam', TINY, url, out / 'fused.pth', '--no-eval'),
    'convert_checkpoint': lambda url, out, photos: ('convert_checkpoint', url, out / 'timm.pth', '--to', 'timm'),
    'export': lambda url, out, photos: ('export', TINY, url, out / 'net.onnx', '--size', 32),
    'quantize': lambda url, out, photos: (
        'quantize', TINY, url, out / 'int8.onnx', '--calib', photos, '--num-calib', 8, '--size', 32
    ),
    'predict': lambda url, out, photos: ('predict', TINY, url, next(photos.rglob('*.png'))),
    'train': lambda url, out, photos: ('train', TINY, '--work-dir', out, '--no-validate'),
}  # fmt: skip


@pytest.fixture(scope='module')
def published(tiny_run, tmp_path_factory):
    """The tiny run's last checkpoint at an address, the server, and a cache for the module."""
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', str(tmp_path_factory.mktemp('torch')))
        yield server.add('/tiny.pth', (tiny_run / 'epoch_4.pth').read_bytes()), server


@pytest.mark.parametrize('tool', CASES)
def test_tools_take_an_address(run_tool, published, digits, tmp_path, tool):
    url, server = published
    name, *arguments = CASES[tool](url, tmp_path, digits / 'val')
    options = [] if tool == 'convert_checkpoint' else ['--cfg-options', *data_options(digits)]
    if tool == 'train':
        options += [f'load_from={url}', 'train_cfg.max_epochs=1']
    code, printed = run_tool(name, *arguments, *options)
    assert code == 0, printed
    assert server.requests == ['GET /tiny.pth']
