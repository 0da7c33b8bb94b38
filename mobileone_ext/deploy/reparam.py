"""What tools/reparam.py does: fuse a checkpoint, write it, read it back, hold it against its source."""

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from rich.table import Table
from torch import nn

from ..config import require_data
from ..data.check import check_loaders, prepare_data
from ..data.pixels import Preprocessing
from ..files import check_distinct, check_writable, write_atomically, write_json
from ..text import make_console, with_progress
from . import DEFAULT_SIZE, compare, cost, fuse


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
    if max_flips is not None and max_flips < 0:
        raise ValueError(f'--max-flips {max_flips}: allowed are 0 or more, or any')
    check_distinct(out, config.filename, checkpoint)
    if not fuse.fuses(config):
        kind = getattr(fuse.backbone_class(config), '__name__', 'none')
        raise ValueError(f'{config.filename}: its backbone is {kind}, which has no switch_to_deploy(): nothing to fuse')
    if evaluate:
        require_data(config, 'test_dataloader')
    if report_path:
        check_writable(report_path)
        check_distinct(report_path, config.filename, checkpoint, out)
    weights = fuse.read_weights(config, checkpoint, ema, trust)
    if evaluate:
        prepare_data(config, 'test_dataloader', classes=weights.classes)
    before = fuse.load_model(config, weights)
    fused = fuse.fuse(before)
    if fused.state_dict().keys() == before.state_dict().keys() and not accept_fused:
        raise ValueError(f'{checkpoint}: is fused already; tools/convert_checkpoint.py changes its layout')

    with write_atomically(out) as part:
        fuse.save_fused(fused, part, config, checkpoint, weights.source)
        after = fuse.load_model(config, fuse.read_weights(config, part))
        network = weights.structure or type(before.backbone).__name__
        report = dict(checkpoint=checkpoint, weights=str(network), source=weights.source, out=out)
        try:
            found = (
                _compare_on_data(config, before, after, max_flips)
                if evaluate
                else {'input_size': _pipeline_size(config)}
            )
        except ValueError as error:
            raise ValueError(f'{out} is not written: {error}') from error
        report.update(found)
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
    difference, accuracies = compare.compare(before.to(device), after.to(device), batches)
    difference.check(max_flips)
    return dict(
        num_images=difference.num_images,
        changed_predictions=difference.changed_predictions,
        max_abs_logit_diff=difference.max_abs_diff,
        max_rel_logit_diff=difference.max_rel_diff,
        **accuracies,
        input_size=_size(*loader.dataset[0]['inputs'].shape[-2:]),
    )


def _size(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _pipeline_size(config: Config) -> int | list[int]:
    """What the config's test pipeline makes of any image, or else ``DEFAULT_SIZE``."""
    try:
        found = Preprocessing(config).image_size
    except ValueError:
        found = None
    return _size(*found) if found else DEFAULT_SIZE


def show(report: dict) -> None:
    """Print a report of :func:`convert` as a table."""
    table = Table(title=f'{report["weights"]} ({report["source"]})')
    for heading in ('', 'branched', 'fused'):
        table.add_column(heading, justify='right' if heading else 'left')

    def row(name: str, key: str, form: str) -> None:
        if f'{key}_before' in report:
            table.add_row(name, *(format(report[f'{key}_{when}'], form) for when in ('before', 'after')))

    row('top-1 (%)', 'top1', '.2f')
    row('top-5 (%)', 'top5', '.2f')
    row('parameters', 'params', ',')
    size = ' x '.join(map(str, cost.sides(report['input_size'])))
    row(f'multiply-adds at {size} px', 'multiply_adds', ',')
    row('latency, batch 1 (ms)', 'latency_ms', '.2f')
    console = make_console()
    console.print(table)
    if 'num_images' in report:
        console.print(
            f'{report["changed_predictions"]} of {report["num_images"]} predictions changed; '
            f'largest logit difference {report["max_abs_logit_diff"]:.1e}, '
            f'relative {report["max_rel_logit_diff"]:.1e}'
        )
    else:
        console.print('not compared on images (--no-eval); outputs on noise agree')
    console.print(f'written: {report["out"]}', soft_wrap=True)
