"""The latency benchmark: turns, statistics, tables and a small real run."""

import argparse
import csv
import functools

import pytest
from benchmarks import infer

pytestmark = pytest.mark.filterwarnings('ignore')


def test_cases_take_turns_and_one_is_open_at_a_time():
    events, shapes = [], []

    class Call:
        def __init__(self, name, *_):
            self.name = name
            events.append(f'open {name}')

        def __call__(self, images):
            shapes.append((self.name, images.shape))

        def __del__(self):
            events.append(f'close {self.name}')

    openers = {
        infer.Case(name, 'onnx', batch, 1): functools.partial(Call, name)
        for name, batch in (('mobileone_s0', 1), ('repvgg_a0', 2))
    }
    times = infer.measure(openers, turns=3, seconds=0)
    once = ['open mobileone_s0', 'close mobileone_s0', 'open repvgg_a0', 'close repvgg_a0']
    assert events == once * 3
    assert set(shapes) == {('mobileone_s0', (1, 3, 224, 224)), ('repvgg_a0', (2, 3, 224, 224))}
    assert [len(values) for values in times.values()] == [6, 6]


@pytest.mark.parametrize(('seconds', 'counted'), [(0, 2), (0.5, 4)])
def test_calls_are_timed_after_a_warm_up(seconds, counted, monkeypatch):
    """By a clock that only calls move: 5 s to warm up, then 125 ms each."""
    clock, durations = [0.0], iter([5, *[0.125] * 9])
    monkeypatch.setattr(infer.time, 'perf_counter', lambda: clock[0])

    def call(_):
        clock[0] += next(durations)

    assert infer.time_calls(call, None, seconds) == [125.0] * counted


def test_processor_time_leaves_out_what_others_took(monkeypatch):
    """Each call takes 2 s by the clock on the wall, and a quarter of a second of the processor."""
    wall, processor = [0.0], [0.0]
    monkeypatch.setattr(infer.time, 'perf_counter', lambda: wall[0])
    monkeypatch.setattr(infer.time, 'process_time', lambda: processor[0])

    def call(_):
        wall[0] += 2
        processor[0] += 0.25

    assert infer.time_calls(call, None, 1, 'cpu') == [250.0] * 4
    assert infer.time_calls(call, None, 3) == [2000.0] * 2
    case = infer.Case('mobileone_s0', 'onnx', 1, 1)
    assert infer.measure({case: lambda: call}, 2, 0, 'cpu')[case] == [250.0] * 4
    assert 'Milliseconds of processor time a call' in infer.as_markdown(infer.summarize({case: [250.0]}), 'cpu')


def test_statistics_and_tables():
    times = {
        infer.Case('mobileone_s0', 'onnx', 1, 1): [float(value) for value in range(1, 102)],
        infer.Case('mobileone_s0', 'onnx', 32, 1): [8.0],
    }
    rows = infer.summarize(times)
    assert (rows[0]['median_ms'], rows[0]['p5_ms'], rows[0]['p95_ms'], rows[0]['calls']) == (51, 6, 96, 101)
    table = infer.as_markdown(rows)
    assert '| mobileone_s0 | onnx | 51.00 (6.00 to 96.00) | 8.00 (8.00 to 8.00) |' in table
    (first, _) = csv.DictReader(infer.as_csv(rows).splitlines())
    assert (first['published_top1'], first['published_by']) == ('71.4', 'MobileOne, Table 9')


def run(*arguments):
    parser = argparse.ArgumentParser()
    infer.add_arguments(parser)
    infer.run(parser.parse_args(list(map(str, arguments))))


@pytest.mark.slow
def test_small_run_writes_tables_and_picture(tmp_path):
    networks = ('--networks', 'mobileone_s0', 'timm_mobileone_s0')
    run(*networks, '--turns', 1, '--seconds', 0, '--batches', 1, '--threads', 1, '--out', tmp_path)
    rows = list(csv.DictReader((tmp_path / 'latency.csv').open()))
    assert [(row['network'], row['form']) for row in rows] == [
        *(('mobileone_s0', form) for form in infer.ALWAYS),
        *(('timm_mobileone_s0', form) for form in ('fused', 'onnx', 'openvino')),
    ]
    assert (tmp_path / 'latency.png').stat().st_size > 10_000
    assert 'onnxruntime' in (tmp_path / 'latency.md').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--networks', 'resnet50'), "argument --networks: invalid choice: 'resnet50' (choose from 'mobileone_s0'"),
        (('--forms', 'tflite'), "argument --forms/--runtime: invalid choice: 'tflite' (choose from 'branched'"),
        (('--turns', '0'), 'at least 1'),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys):
    with pytest.raises((ValueError, SystemExit)) as caught:
        run(*arguments, '--out', tmp_path)
    assert message in f'{caught.value}{capsys.readouterr().err}'


def test_own_files_are_timed(tmp_path):
    import torch

    from mobileone_ext.deploy.formats.base import Request, load_format

    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 5)).eval()
    load_format('onnx').write(net, torch.zeros(2, 3, 48, 40), tmp_path / 'mine.onnx', Request())
    arguments = ('--turns', 1, '--seconds', 0, '--batches', 1, '--threads', 1, '--out', tmp_path)
    run('--files', tmp_path / 'mine.onnx', *arguments)
    (row,) = csv.DictReader((tmp_path / 'latency.csv').open())
    assert (row['network'], row['form'], row['calls']) == ('mine.onnx', 'onnx', '2')
    with pytest.raises(FileNotFoundError, match='none.onnx'):
        run('--files', tmp_path / 'none.onnx', *arguments)


def test_forms_that_cannot_hold_a_network_are_left_out(tmp_path, monkeypatch, capsys):
    """One that refuses it, one whose file computes something else."""
    import torch

    from mobileone_ext.deploy.formats.base import load_format

    def refuse(net, image, path, request):
        raise RuntimeError('no layer for it\nand pages more')

    class Other(torch.nn.Module):
        def forward(self, image):
            return image.mean((2, 3)) * 2

    torchscript = load_format('torchscript').write
    monkeypatch.setattr(infer, 'build', lambda name: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1)).eval())
    monkeypatch.setattr(infer, 'fold', lambda name, net: torch.nn.Sequential(net, torch.nn.Flatten()).eval())
    assert set(infer.prepare('peer', ['torchscript'], tmp_path)) == {'torchscript'}
    for write, message in (
        (refuse, 'peer: not timed as torchscript, which cannot hold it: no layer for it\n'),
        (lambda net, *rest: torchscript(Other().eval(), *rest), 'outputs differ by'),
    ):
        monkeypatch.setattr(load_format('torchscript'), 'write', write)
        assert infer.prepare('peer', ['torchscript'], tmp_path) == {}
        assert message in capsys.readouterr().out


def test_closed_cases_leave_no_memory_behind():
    """Blocks that were freed in pieces go back to the system."""
    from pathlib import Path

    def resident():
        fields = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines() if ':' in line)
        return int(fields['VmRSS'].split()[0]) / 1024

    if not Path('/proc/self/status').exists():
        pytest.skip('no /proc')

    class Call:
        def __call__(self, images):
            self.blocks = [bytearray(64_000) for _ in range(4000)]

    infer.measure({infer.Case('mobileone_s0', 'onnx', 1, 1): Call}, 1, 0)
    before = resident()
    infer.measure({infer.Case(f'n{index}', 'onnx', 1, 1): Call for index in range(3)}, 2, 0)
    assert resident() - before < 100


@pytest.mark.parametrize(
    'name', ['repvit_m0_9', 'fastvit_t8', 'ghostnetv2_100', 'efficientnet_lite0', 'mobilenetv4_conv_small']
)
def test_rivals_are_folded_right(name):
    import torch

    net = infer.build(name)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(image)
        found = infer.fold(name, net)(image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
