"""What tools/quantize.py does: read images, quantise, write the ONNX file, measure it."""

import argparse
import json
from pathlib import Path
from typing import List, Tuple

import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from .. import export
from ..data import check_data
from ..deploy import top_accuracies
from ..files import check_writable, write_atomically, write_text
from ..images import Normalise, find_images, read_images
from ..runner import Runner
from ..runtime import Network, open_network
from .calibrate import Int8, Options, quantise, sensitivity
from .qdq import insert_qdq


def run(config: Config, args: argparse.Namespace, options: Options) -> None:
    """Quantise ``args.checkpoint`` with the images of ``args.calib`` into ``args.out``.

    Raises:
        ValueError, OSError: for what cannot be read, written or quantised; nothing is left half-written.
    """
    export.check_request(args.out, 'onnx', args.opset)
    if args.report:
        check_writable(args.report)
    if args.evaluate:
        check_data(config, 'test_dataloader')
    model = export.load_fused(config, args.checkpoint, args.ema, args.trust_checkpoint)
    images, skipped = read_calibration(config, args.calib, args.num_calib)
    for message in skipped:
        print(f'skipped {message}')
    print(f'{len(images)} calibration images from {args.calib}, {len(skipped)} skipped')

    report = dict(options=vars(options), num_calib=len(images))
    if args.sensitivity:
        report['sensitivity'] = sensitivity(model, images[::2], options, images[1::2])
        show_sensitivity(report['sensitivity'])
    int8 = quantise(model, images, options)
    write(config, int8, args)
    print(f'{args.out}: written')
    if args.evaluate:
        report.update(evaluate(config, model, open_network(args.out), args.normalise))
        print(
            f'{report["num_images"]} images: top-1 {report["top1_float"]:.2f} float, {report["top1_int8"]:.2f} int8; '
            f'top-5 {report["top5_float"]:.2f}, {report["top5_int8"]:.2f}; '
            f'{report["changed_predictions"]} predictions changed'
        )
    if args.report:
        write_text(json.dumps(report, indent=2) + '\n', args.report)


def read_calibration(config: Config, folder: str, count: int) -> Tuple[Tensor, List[str]]:
    """``count`` normalised images (N, C, H, W), spread evenly over ``folder``, and messages about unreadable files.

    Raises:
        ValueError: if there are fewer files than asked for, or none can be read.
    """
    if count < 1:
        raise ValueError(f'--num-calib {count}: at least one image is needed')
    files, skipped = find_images([folder]), []
    if len(files) < count:
        raise ValueError(f'{folder}: holds {len(files)} images, --num-calib asks for {count}')
    chosen = [files[index] for index in np.linspace(0, len(files) - 1, count).astype(int)]
    pixels = [image for _, image in read_images(config, chosen, skipped)]
    if not pixels:
        raise ValueError(f'{folder}: none of {count} files is a readable image')
    return Normalise(config)(torch.stack(pixels)), skipped


def write(config: Config, int8: Int8, args: argparse.Namespace) -> None:
    """Write the ONNX file ``args.out``."""
    net = export.DeployNet(int8.model, Normalise(config) if args.normalise else None, args.softmax)
    image = torch.zeros(2, net.backbone.stage0.in_channels, args.size, args.size)
    proto = insert_qdq(export.onnx_proto(net, image, args.opset, dynamic_batch=True), int8)
    metadata = export.describe(config, args.checkpoint, args.normalise, args.softmax)
    with write_atomically(args.out) as part:
        export.write_onnx(proto, Path(part), {**metadata, 'precision': 'int8'})


@torch.no_grad()
def evaluate(config: Config, model: nn.Module, network: Network, normalised_inside: bool) -> dict:
    """Top-1 and top-5 (percent) of the float model and the int8 file on the config's test set, and the flips."""
    normalise = Normalise(config)
    before, after, labels = [], [], []
    for batch in Runner.build_dataloader(config.test_dataloader):
        pixels = torch.stack(batch['inputs']).float()
        if config.model.data_preprocessor.get('to_rgb', False):
            pixels = pixels.flip(1)
        images = normalise(pixels)
        before.append(model(images))
        after.append(torch.from_numpy(network((pixels if normalised_inside else images).numpy())))
        labels.extend(sample.gt_label for sample in batch['data_samples'])
    before, after, labels = (torch.cat(parts) for parts in (before, after, labels))
    report = dict(num_images=len(labels), changed_predictions=int((before.argmax(1) != after.argmax(1)).sum()))
    report['top1_float'], report['top5_float'] = top_accuracies(before, labels)
    report['top1_int8'], report['top5_int8'] = top_accuracies(after, labels)
    return report


def show_sensitivity(costs: List[Tuple[str, float]]) -> None:
    table = Table(title='each layer alone in int8, largest cost first')
    table.add_column('layer')
    table.add_column('divergence', justify='right')
    for name, cost in costs:
        table.add_row(name, f'{cost:.5f}')
    Console().print(table)
