"""The input pipeline's benchmark: turns, the same kind of tensor from everybody, tables and a small real run."""

import argparse

import numpy as np
import pytest
import torch
from benchmarks import pipeline
from PIL import Image


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(tmp_path / f'{number}.jpg')
    return tmp_path


def run(*arguments):
    parser = argparse.ArgumentParser()
    pipeline.add_arguments(parser)
    pipeline.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize('task', pipeline.TASKS)
@pytest.mark.parametrize('name', pipeline.PIPELINES)
def test_every_pipeline_ends_in_pixels(name, task, images):
    tensor = pipeline.PIPELINES[name](task, 32)(images / '0.jpg')
    assert tensor.shape == (3, 32, 32) and tensor.dtype == torch.uint8


def test_pipelines_take_turns_and_the_first_round_is_not_counted(images):
    order = []
    builders = {name: lambda task, size, name=name: lambda file: order.append((name, file)) for name in 'ab'}
    seconds = pipeline.measure(builders, [1, 2], 'training', 32, rounds=3)
    assert order == [('a', 1), ('a', 2), ('b', 1), ('b', 2)] * 4
    assert {name: len(values) for name, values in seconds.items()} == {'a': 3, 'b': 3}


def test_a_run_writes_its_table(images, tmp_path, capsys):
    out = tmp_path / 'out'
    run(images, '--count', 1, '--rounds', 1, '--sizes', 32, '--resample', 120, 90, '--short-edge', 45, '--out', out)
    report = (out / 'pipeline.md').read_text()
    assert report in capsys.readouterr().out
    assert all(f'| {size}, ' in report for size in ('80 x 60', '120 x 90', '60 x 45'))
    assert 'training, 32 px | validation, 32 px' in report
    lines = (out / 'pipeline.csv').read_text().splitlines()
    assert lines[0] == ','.join(pipeline.COLUMNS) and len(lines) == 1 + 3 * 2 * len(pipeline.PIPELINES)


@pytest.mark.parametrize('option', ['--count', '--rounds', '--sizes', '--short-edge'])
def test_nothing_to_measure_is_refused(option, images):
    with pytest.raises(ValueError, match=option):
        run(images, option, 0)
