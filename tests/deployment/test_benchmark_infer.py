"""The latency benchmark: turns, statistics, tables and a small real run."""

import argparse
import csv

import numpy as np
import pytest

from mobileone_ext.benchmark import infer

pytestmark = pytest.mark.filterwarnings('ignore')


def test_cases_take_turns():
    order = []
    calls = {
        infer.Case(name, 'onnx', 1, 1): lambda images, name=name: order.append(name)
        for name in ('mobileone_s0', 'repvgg_a0')
    }
    times = infer.measure(calls, np.zeros((1, 3, 2, 2), np.float32), rounds=3)
    assert order == ['mobileone_s0', 'repvgg_a0'] * 5
    assert all(len(values) == 3 for values in times.values())


def test_statistics_and_tables():
    times = {
        infer.Case('mobileone_s0', 'onnx', 1, 1): [float(value) for value in range(1, 102)],
        infer.Case('mobileone_s0', 'onnx', 32, 1): [8.0],
    }
    rows = infer.summarise(times)
    assert (rows[0]['median_ms'], rows[0]['p5_ms'], rows[0]['p95_ms'], rows[0]['calls']) == (51, 6, 96, 101)
    table = infer.as_markdown(rows)
    assert '| mobileone_s0 | onnx | 51.00 (6.00 to 96.00) | 8.00 (8.00 to 8.00) |' in table
    (first, _) = csv.DictReader(infer.as_csv(rows).splitlines())
    assert (first['published_top1'], first['published_by']) == ('71.4', 'MobileOne, Table 9')


def run(*arguments):
    parser = argparse.ArgumentParser()
    infer.add_arguments(parser)
    infer.run(parser.parse_args(list(map(str, arguments))))


def test_small_run_writes_tables_and_picture(tmp_path):
    networks = ('--networks', 'mobileone_s0', 'timm_mobileone_s0')
    run(*networks, '--rounds', 1, '--batches', 1, '--threads', 1, '--out', tmp_path)
    rows = list(csv.DictReader((tmp_path / 'latency.csv').open()))
    assert [(row['network'], row['form']) for row in rows] == [
        *(('mobileone_s0', form) for form in infer.FORMS),
        *(('timm_mobileone_s0', form) for form in ('fused', 'onnx', 'openvino')),
    ]
    assert (tmp_path / 'latency.png').stat().st_size > 10_000
    assert 'onnxruntime' in (tmp_path / 'latency.md').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--networks', 'resnet50'), "'resnet50' is not known; allowed are mobileone_s0"),
        (('--forms', 'tflite'), "'tflite' is not known; allowed are branched"),
        (('--rounds', '-1'), 'at least 1'),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(*arguments, '--out', tmp_path)
