"""What tools/reparam.py does: fuse a checkpoint, write it, read it back, hold it against its source."""

import contextlib
import pkgutil
from inspect import signature
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from torch import nn

from ..checkpoints.load import load_weights
from ..checkpoints.names import resolve
from ..config import require_data
from ..data.check import check_loaders, prepare_data
from ..data.pixels import Preprocessing
from ..files import check_outputs, write_atomically, write_json
from ..provenance import origin
from ..text import one_line, print_table, with_progress
from . import DEFAULT_SIZE, anywhere, compare, cost, fuse, sides
from .quantization.inside import prepare


def convert(
    config: Config,
    checkpoint: str,
    out: str,
    ema: str = 'auto',
    trust: bool = False,
    report_path: str | None = None,
    evaluate: bool = True,
    max_flips: int | None = 0,
    accept_fused: bool = False,
) -> dict:
    """Fuse ``checkpoint`` into the file ``out``; the report has what :func:`show` prints.

    Args:
        ema, trust: as in :func:`mobileone_ext.checkpoints.load.load_weights`.
        report_path: where to write the report as JSON.
        evaluate: compare source and written file on the config's test set.
        max_flips: predictions that may change; None allows any.
        accept_fused: write a source that is fused already as it is.

    Raises:
        ValueError: if the source is fused already or does not fit the config, or
            if more predictions changed, or an output is NaN or infinite; what stood at
            ``out`` before stands there still.
    """
    check_outputs([out, report_path], config.filename, checkpoint)
    if not fuse.fuses(config):
        kind = getattr(fuse.backbone_class(config), '__name__', 'none')
        raise ValueError(f'{config.filename}: its backbone is {kind}, which has no switch_to_deploy(): nothing to fuse')
    weights = fuse.read_weights(config, checkpoint, ema, trust)
    if evaluate:
        require_data(config, 'test_dataloader')
        prepare_data(config, 'test_dataloader', classes=weights.classes)
    before = fuse.load_model(config, weights)
    fused = fuse.fuse(before)
    if fused.state_dict().keys() == before.state_dict().keys() and not accept_fused:
        takes = 'tools/export.py takes it as it is, tools/convert_checkpoint.py changes its layout'
        raise ValueError(f'{checkpoint}: is fused already; {takes}')

    with write_atomically(out) as part:
        fuse.save_fused(fused, part, config, checkpoint, weights.source)
        after = fuse.load_model(config, fuse.read_weights(config, part))
        network = weights.structure or type(before.backbone).__name__
        report = dict(checkpoint=checkpoint, weights=str(network), source=weights.source, out=out)
        try:
            report |= _compare_on_data(config, before, after, max_flips) if evaluate else _pipeline_size(config)
        except ValueError as error:
            raise ValueError(f'{out} is not written: {error}') from error
    for name, model in (('before', before), ('after', after)):
        report[f'params_{name}'] = cost.count_parameters(model)
        report[f'multiply_adds_{name}'] = cost.count_multiply_adds(model, report['input_size'])
        report[f'latency_ms_{name}'] = cost.latency(model, report['input_size'])
    if report_path:
        write_json(report, report_path)
    return report


def _compare_on_data(config: Config, before: nn.Module, after: nn.Module, max_flips: int | None) -> dict:
    loader = Runner.build_dataloader(config.test_dataloader)
    check_loaders(dict(test=loader), config)
    device = get_device()
    batches = with_progress(loader, 'comparing predictions')
    models = dict(zip(compare.FUSION, (before.to(device), after.to(device))))
    measured = compare.compare(models, batches)
    difference = measured[compare.FUSION[1]].difference
    difference.check(max_flips)
    accuracies = {}
    for when, result in zip(('before', 'after'), measured.values()) if not difference.multi_label else ():
        accuracies |= {f'top1_{when}': result.top1, f'top5_{when}': result.top5}
    return dict(
        num_images=difference.num_images,
        changed_predictions=difference.changed_predictions,
        max_abs_logit_diff=difference.max_abs_diff,
        max_rel_logit_diff=difference.max_rel_diff,
        **accuracies,
        **_size(*loader.dataset[0]['inputs'].shape[-2:]),
    )


def _size(height: int, width: int) -> dict:
    return dict(input_size=height if height == width else [height, width])


def _pipeline_size(config: Config) -> dict:
    """What the config's test pipeline makes of any image, or else ``DEFAULT_SIZE``."""
    with contextlib.suppress(ValueError):  # no pipeline
        if size := Preprocessing(config).image_size:
            return _size(*size)
    return _size(DEFAULT_SIZE, DEFAULT_SIZE)


def show(report: dict) -> None:
    """Print a report of :func:`convert` as a table."""
    size = ' x '.join(map(str, sides(report['input_size'])))
    figures = (
        ('top-1 (%)', 'top1', '.2f'),
        ('top-5 (%)', 'top5', '.2f'),
        ('parameters', 'params', ','),
        (f'multiply-adds at {size} px', 'multiply_adds', ','),
        ('latency, batch 1 (ms)', 'latency_ms', '.2f'),
    )
    rows = [
        (name, *(format(report[f'{key}_{when}'], form) for when in ('before', 'after')))
        for name, key, form in figures
        if f'{key}_before' in report
    ]
    print_table(f'{report["weights"]} ({report["source"]})', ('', 'branched', 'fused'), rows)
    if 'num_images' in report:
        print(
            f'{report["changed_predictions"]} of {report["num_images"]} predictions changed; '
            f'largest logit difference {report["max_abs_logit_diff"]:.1e}, '
            f'relative {report["max_rel_logit_diff"]:.1e}'
        )
    else:
        print('not compared on images (--no-evaluate); outputs on noise agree')


def convert_any(
    build: str,
    checkpoint: str,
    out: str,
    images: Any = None,
    ema: str = 'auto',
    trust: bool = False,
    report_path: str | None = None,
    even: bool = False,
) -> str:
    """Fuse ``checkpoint`` of any network into the file ``out``: weights, for the network that is built and fused.

    Args:
        build: ``package.module:function``, which gives the network with its branches.
        images: what it takes, as of :func:`anywhere.fuse`.
        ema, trust: as in :func:`mobileone_ext.checkpoints.load.load_weights`.
        report_path: where to write the report as JSON.
        even: bring channels to ranges that other quantizers can bear as well, see :func:`inside.prepare`.

    Returns:
        What was done, in lines.

    Raises:
        ValueError: if the weights are not of this network, and see :func:`anywhere.fuse`; nothing is written.
    """
    check_outputs([out, report_path], checkpoint)
    model = called(build)
    if not isinstance(model, nn.Module):
        raise ValueError(f'{build}: gives a {type(model).__name__}, where a network is needed')
    weights = load_weights(checkpoint, ema, trust, plain=True)
    weights.load_into(model)
    report = anywhere.fuse(model.requires_grad_(False), images)
    evened = prepare(model, images) if even else {}
    meta = dict(origin(resolve(checkpoint), 'torch'), source_weights=weights.source, model=build)
    with write_atomically(out) as part:
        torch.save(dict(meta=meta, state_dict=model.state_dict()), part)
        load_weights(part, plain=True).load_into(model)
    if report_path:
        write_json(vars(report) | ({'prepared': evened} if even else {}), report_path)
    lines = [f'{len(evened["pairs"])} maps evened out, outputs within {evened["difference"]:.1e}'] if even else []
    return '\n'.join([str(report), *lines])


def called(name: str) -> Any:
    """What the function gives that ``package.module:function`` names.

    Raises:
        ValueError: if there is no such function, it needs an argument, or its module cannot be imported.
    """
    try:
        function = pkgutil.resolve_name(name)
    except Exception as error:  # whatever somebody's module raises
        reason = f'{one_line(error)}; PYTHONPATH says where Python looks, PYTHONPATH=. in the folder that you are in'
        raise ValueError(f'{name}: {reason}') from error
    try:
        signature(function).bind()
    except TypeError as error:
        raise ValueError(f'{name}: {error}; a function without arguments is needed') from error
    return function()
