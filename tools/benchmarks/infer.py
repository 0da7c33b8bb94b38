"""Latency of deployed networks: MobileOne in every form, and the paper's peers folded and exported the same way.

Every case is opened, warmed up, called for a moment and closed again before the next one's turn, several times
round: a slow minute of the machine meets all of them, no idle thread pool disturbs, and memory holds one case at a
time. Weights are random: they cost the same time as trained ones.
"""

import argparse
import contextlib
import copy
import ctypes
import functools
import gc
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from mmengine.utils import get_git_hash
from torch import Tensor, nn

from mobileone_ext.backbone import MobileOne
from mobileone_ext.deploy.compare import Difference
from mobileone_ext.deploy.formats import FORMAT_OF_SUFFIX, FORMATS
from mobileone_ext.deploy.formats.base import MissingPackage, Request, first_line, load_format
from mobileone_ext.deploy.formats.onnx import onnx_proto, write_onnx
from mobileone_ext.deploy.runtime import open_network
from mobileone_ext.files import check_writable, csv_text, suffix_of, write_text
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table, with_progress

from . import CLOCKS
from .classifier import Classifier

PYTORCH = ('branched', 'fused')
PHONE = ('litert', 'executorch', 'ncnn', 'mnn')
FORMS = (*PYTORCH, 'onnx', 'int8', 'openvino', 'torchscript', *PHONE)
ALWAYS = ('branched', 'fused', 'onnx', 'int8', 'openvino')  # measured where nothing else is asked for
SIZE = 224
# What runs a form, by import name, for the versions in the report.
RUNTIMES = {
    **dict.fromkeys(('onnx', 'int8', 'ort'), 'onnxruntime'),
    **dict(openvino='openvino', litert='ai_edge_litert', executorch='executorch', ncnn='ncnn', mnn='MNN'),
}
QUICK = ('mobileone_s0', 'mobileone_s1', 'mobilenetv2_100', 'mobilenetv3_small_100', 'efficientnet_b0')

# Published ImageNet top-1 and whose number it is.
PUBLISHED = {
    **{
        f'mobileone_{name}': (top1, 'MobileOne, Table 9')
        for name, top1 in dict(s0=71.4, s1=75.9, s2=77.4, s3=78.1, s4=79.4).items()
    },
    'timm_mobileone_s0': (71.4, 'MobileOne, Table 9'),
    'mobilenetv2_100': (72.0, 'Sandler et al. 2018'),
    'mobilenetv3_large_100': (75.2, 'Howard et al. 2019'),
    'mobilenetv3_small_100': (67.4, 'Howard et al. 2019'),
    'efficientnet_b0': (77.1, 'Tan & Le 2019'),
    'mnasnet_a1': (75.2, 'Tan et al. 2019'),
    'repvgg_a0': (72.41, 'Ding et al. 2021'),
    'shufflenet_v2_x1_0': (69.4, 'Ma et al. 2018'),
    'mobilenetv4_conv_small': (73.8, 'Qin et al. 2024'),
    'repvit_m0_9': (78.7, 'Wang et al. 2023'),
    'fastvit_t8': (75.6, 'Vasu et al. 2023'),
    'efficientnet_lite0': (75.1, 'Google 2020'),
    'ghostnetv2_100': (75.3, 'Tang et al. 2022'),
}
# How long the network of the published figure was trained, and whether a teacher helped; of the others it is not known.
RECIPES = {
    **{name: '300 epochs' for name in PUBLISHED if 'mobileone' in name},
    'repvgg_a0': '120 epochs',
    'shufflenet_v2_x1_0': '240 epochs',
    'mobilenetv4_conv_small': '9,600 epochs',
    'repvit_m0_9': '300 epochs, distilled',
    'fastvit_t8': '300 epochs, not distilled',
}
STRONGER = ('mobilenetv4_conv_small', 'repvit_m0_9')  # by far more epochs, or distilled
# Pixels of the published figure, where they are not SIZE.
PIXELS = {'fastvit_t8': 256}
PYTORCH_TITLE = 'PyTorch, fused'
# Of the module time.
UNITS = dict(wall='milliseconds', cpu='milliseconds of processor time')
NETWORKS = tuple(PUBLISHED)


class Case(NamedTuple):
    network: str
    form: str
    batch: int
    threads: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--quick', action='store_true', help='five networks and short turns: two to three minutes')
    names = dict(nargs='+', metavar='NAME')
    parser.add_argument('--networks', choices=NETWORKS, help=f'some of {", ".join(NETWORKS)} (all)', **names)
    parser.add_argument(
        '--forms',
        '--runtime',
        dest='forms',
        choices=FORMS,
        default=ALWAYS,
        help=f'some of {", ".join(FORMS)} ({" ".join(ALWAYS)})',
        **names,
    )
    parser.add_argument('--files', nargs='+', default=[], metavar='FILE', help='time these exported files alone')
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 32], metavar='N', help='images at a time (1 32)')
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2], metavar='N', help='(1 2)')
    parser.add_argument('--repeats', '--turns', dest='turns', type=int, metavar='N', help='of each case (3; quick: 2)')
    parser.add_argument('--seconds', type=float, metavar='S', help='of a turn; at least two calls (0.3; quick: 0.1)')
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='cpu: processor time of all threads; on one thread, what a free core would take (wall)',
    )
    parser.add_argument(
        '--out', default='work_dirs/benchmark_infer', metavar='DIR', help='for latency.csv, .md and .png'
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write it with its picture to ``args.out``."""
    networks = args.networks or (() if args.files else QUICK if args.quick else NETWORKS)
    turns, seconds = (2, 0.1) if args.quick else (3, 0.3)
    turns = turns if args.turns is None else args.turns
    seconds = seconds if args.seconds is None else args.seconds
    if min(turns, *args.batches, *args.threads) < 1:
        raise ValueError('--turns, --batches and --threads: at least 1')
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / 'latency.csv')

    with tempfile.TemporaryDirectory() as folder:
        openers = {}
        for file in args.files:
            opener = functools.partial(open_network, Path(file))
            opener()  # a mistake is told now
            for batch, threads in itertools.product(args.batches, args.threads):
                openers[Case(Path(file).name, FORMAT_OF_SUFFIX[suffix_of(file)], batch, threads)] = functools.partial(
                    opener, threads, batch
                )
        for name in with_progress(networks, 'fold and export'):
            for form, opener in prepare(name, args.forms, Path(folder)).items():
                for batch, threads in itertools.product(args.batches, args.threads):
                    openers[Case(name, form, batch, threads)] = functools.partial(opener, threads, batch)
        packages = dict.fromkeys(RUNTIMES[case.form] for case in openers if case.form in RUNTIMES)
        head = f'{machine("torch", *["timm"] * bool(networks), *packages)}; {SIZE} px'
        print(head)
        rows = summarize(measure(openers, turns, seconds, args.clock))
    report = f'{head}; {peak_memory()}\n\n{as_markdown(rows, args.clock)}'
    print(report)
    write_text(as_csv(rows), out / 'latency.csv')
    write_text(report, out / 'latency.md')
    draw(rows, out / 'latency.png', args.clock)
    print(f'written: {out}/latency.csv, .md, .png')


def peak_memory() -> str:
    """The most memory that this process and the largest of its children held."""
    import resource

    unit = 1 if sys.platform == 'darwin' else 1024
    own, child = (
        resource.getrusage(who).ru_maxrss * unit / 1e9 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return f'{own:.1f} GB of memory at most, {child:.1f} GB in a child'


def measure(
    openers: dict[Case, Callable[[], Callable]], turns: int, seconds: float, clock: str = 'wall'
) -> dict[Case, list[float]]:
    """Milliseconds of each call of each case; one case is open at a time."""
    times = {case: [] for case in openers}
    for turn in range(turns):  # no progress bar: it would take its share of the processor
        print(f'turn {turn + 1} of {turns}: {len(openers)} cases', flush=True)
        for case, opener in openers.items():
            call = opener()
            size = getattr(call, 'size', None) or (PIXELS.get(case.network, SIZE),) * 2
            images = np.random.default_rng(0).standard_normal((case.batch, 3, *size), np.float32)
            times[case] += time_calls(call, images, seconds, clock)
            del call, images
            release_memory()
    return times


def release_memory() -> None:
    """Give back to the system what a closed case had: the C library keeps freed blocks of each thread, and cases of
    different sizes leave ever more of them."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def time_calls(
    call: Callable[[np.ndarray], object], images: np.ndarray, seconds: float, clock: str = 'wall'
) -> list[float]:
    """Milliseconds of each call for ``seconds``, at least two, after warming up for a fifth of it."""
    _repeat(call, images, seconds / 5, 1, CLOCKS[clock])
    return _repeat(call, images, seconds, 2, CLOCKS[clock])


def _repeat(
    call: Callable[[np.ndarray], object], images: np.ndarray, seconds: float, least: int, clock: str
) -> list[float]:
    now, times = getattr(time, clock), []
    while len(times) < least or sum(times) < seconds * 1e3:
        start = now()
        call(images)
        times.append((now() - start) * 1e3)
    return times


def summarize(times: dict[Case, list[float]]) -> list[dict]:
    """A row for each case: median, 5th and 95th percentile in ms, and the number of calls."""
    return [
        dict(
            **case._asdict(),
            median_ms=float(median(values)),
            p5_ms=float(np.percentile(values, 5)),
            p95_ms=float(np.percentile(values, 95)),
            calls=len(values),
        )
        for case, values in times.items()
    ]


def prepare(name: str, forms: Sequence[str], folder: Path) -> dict[str, Callable[[int, int], Callable]]:
    """For each form that the network has: a function that opens it for a number of threads and a batch size."""
    branched = build(name)
    net = fold(name, branched)
    own = name.startswith('mobileone_')
    openers = {}
    if 'branched' in forms and own:
        openers['branched'] = functools.partial(_torch_call, branched)
    if 'fused' in forms:
        openers['fused'] = functools.partial(_torch_call, net)
    size = PIXELS.get(name, SIZE)
    onnx_file = folder / f'{name}.onnx'
    if 'onnx' in forms or 'openvino' in forms:
        write_onnx(onnx_proto(net, torch.zeros(2, 3, size, size)), onnx_file, {})
    if 'onnx' in forms:
        openers['onnx'] = functools.partial(open_network, onnx_file)
    if 'int8' in forms and own:
        int8_file = folder / f'{name}_int8.onnx'
        _export_int8(net, int8_file)
        openers['int8'] = functools.partial(open_network, int8_file)
    if 'openvino' in forms:
        import openvino

        openvino_file = folder / f'{name}.xml'
        openvino.save_model(openvino.convert_model(onnx_file), openvino_file, compress_to_fp16=False)
        openers['openvino'] = functools.partial(open_network, openvino_file)
    for form in (form for form in ('torchscript', *PHONE) if form in forms):
        file = folder / f'{name}_{form}{FORMATS[form].suffixes[0]}'
        try:
            _write_checked(net.to(memory_format=torch.contiguous_format), file, form, size)
        except (MissingPackage, ImportError):
            raise
        except Exception as error:
            print(f'{name}: not timed as {form}, which cannot hold it: {first_line(error)}', flush=True)
        else:
            openers[form] = functools.partial(open_network, file)
    return openers


@torch.no_grad()
def _write_checked(net: nn.Module, file: Path, form: str, size: int) -> None:
    """Write ``net`` and run the file on an image; raises an error if it is not the same function."""
    image = torch.zeros(1 if form in PHONE else 2, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        load_format(form).write(net, image, file, Request(form, size))
    noise, difference = torch.randn(1, 3, size, size), Difference()
    difference.add(net(noise), torch.from_numpy(open_network(file, 1)(noise.numpy())))
    difference.check(None, 1e-2)


def build(name: str) -> nn.Module:
    """The network as it is trained, in eval mode."""
    torch.manual_seed(0)
    if name.startswith('mobileone_'):
        arch = name.split('_')[1]
        return Classifier(MobileOne(arch), arch).eval()
    if name == 'shufflenet_v2_x1_0':
        import torchvision

        return torchvision.models.shufflenet_v2_x1_0().eval()
    import timm

    # timm calls the search result MNASNet-A1 by its other name.
    names = {'timm_mobileone_s0': 'mobileone_s0', 'mnasnet_a1': 'semnasnet_100'}
    return timm.create_model(names.get(name, name)).eval()


def fold(name: str, net: nn.Module) -> nn.Module:
    """The network as it is deployed: branches fused, batch norm folded into convolutions."""
    if name.startswith('mobileone_'):
        net = copy.deepcopy(net)
        net.backbone.switch_to_deploy()
        return net
    from timm.utils.model import reparameterize_model
    from torch.fx.experimental.optimization import fuse as fold_batch_norm

    if name.startswith(('timm_mobileone', 'repvgg', 'repvit', 'fastvit')):
        net = reparameterize_model(net)
    return fold_batch_norm(net)


def _export_int8(net: nn.Module, path: Path) -> None:
    from mobileone_ext.deploy.export import DeployNet
    from mobileone_ext.deploy.quantization import Options
    from mobileone_ext.deploy.quantization.calibrate import quantize
    from mobileone_ext.deploy.quantization.qdq import insert_qdq

    # Rounded to nearest: the time of an int8 kernel does not depend on its numbers.
    int8 = quantize(net, torch.randn(2, 3, SIZE, SIZE), Options(equalize=False, compensate=False, ranges='minmax'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        proto = onnx_proto(DeployNet(int8.model), torch.zeros(2, 3, SIZE, SIZE))
    write_onnx(insert_qdq(proto, int8), path, {})


def _torch_call(net: nn.Module, threads: int, batch: int) -> Callable[[np.ndarray], Tensor]:
    """In channels_last, which takes a fifth less time on processors; ``batch`` is what the other openers take too."""
    net = net.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call(images: np.ndarray) -> Tensor:
        torch.set_num_threads(threads)
        return net(torch.from_numpy(images).to(memory_format=torch.channels_last))

    return call


COLUMNS = (*Case._fields, 'median_ms', 'p5_ms', 'p95_ms', 'calls', 'published_top1', 'published_by', 'recipe', 'commit')


def as_csv(rows: list[dict]) -> str:
    """One line a case, with ``COLUMNS``."""
    lines = []
    for row in rows:
        top1, author = PUBLISHED.get(row['network'], ('', ''))
        rounded = {key: f'{row[key]:.3f}' for key in ('median_ms', 'p5_ms', 'p95_ms')}
        published = dict(published_top1=top1, published_by=author, recipe=RECIPES.get(row['network'], 'unknown'))
        lines.append({**row, **rounded, **published, 'commit': get_git_hash(digits=7)})
    return csv_text(lines, COLUMNS)


def as_markdown(rows: list[dict], clock: str = 'wall') -> str:
    """A table with a line for each network and form, a column for each batch and thread count."""
    settings = sorted({(row['batch'], row['threads']) for row in rows})
    lines = []
    cells = {tuple(row[key] for key in Case._fields): row for row in rows}
    for network, form in dict.fromkeys((row['network'], row['form']) for row in rows):
        found = (cells[(network, form, *setting)] for setting in settings)
        texts = (f'{row["median_ms"]:.2f} ({row["p5_ms"]:.2f} to {row["p95_ms"]:.2f})' for row in found)
        lines.append((network, form, *texts))
    table = markdown_table(
        ('network', 'form', *(f'batch {batch}, {threads} thr.' for batch, threads in settings)), lines
    )
    return f'{UNITS[clock].capitalize()} a call: median (5th to 95th percentile).\n\n{table}\n'


def draw(rows: list[dict], path: Path, clock: str = 'wall') -> None:
    """The paper's picture for the first of these forms: published top-1 over the latency of one image on one thread."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from mobileone_ext.pictures import BLUE, ORANGE, picture

    batch, threads = min((row['batch'], row['threads']) for row in rows)
    rows = [row for row in rows if (row['batch'], row['threads']) == (batch, threads) and row['network'] in PUBLISHED]
    forms = [form for form in ('onnx', *PHONE, 'openvino', 'torchscript', 'fused') if _places(rows, form)]
    if not forms:
        return
    places, int8 = _places(rows, forms[0]), _places(rows, 'int8')
    other = dict(color=BLUE, marker='D', linestyle='')
    looks = {
        'MobileOne': dict(color=ORANGE, marker='o'),
        'others': other,
        'others, trained longer or by a teacher': dict(other, fillstyle='none'),
    }
    with picture(path, (8, 5.5), dpi=120) as figure:
        axes = figure.subplots()
        for label, look in looks.items():
            points = [place for network, place in places.items() if _group(network) == label]
            if points:
                axes.plot(*zip(*points), **look, label=label)
        if forms[0] == 'onnx' and int8:
            int8_label = "MobileOne, int8 (the float network's top-1)"
            axes.plot(*zip(*int8.values()), 's--', color='black', label=int8_label)
        title = f'published ImageNet top-1 over latency: {PYTORCH_TITLE if forms[0] == "fused" else forms[0]}'
        labels = dict(xlabel=f'{UNITS[clock]} a call, batch {batch}, threads: {threads}', ylabel='top-1, %')
        axes.set(xscale='log', title=title, **labels)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter('{x:g}')
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.1)
        axes.grid(alpha=0.3, which='both')
        axes.legend(loc='lower right')
        figure.draw_without_rendering()  # names are put where the panel will be
        _write_names(axes, places)


def _group(network: str) -> str:
    if network.startswith('mobileone_'):
        return 'MobileOne'
    return 'others, trained longer or by a teacher' if network in STRONGER else 'others'


def _places(rows: list[dict], form: str) -> dict[str, tuple[float, float]]:
    """Network -> milliseconds and published top-1."""
    return {row['network']: (row['median_ms'], PUBLISHED[row['network']][0]) for row in rows if row['form'] == form}


# Of a name from its point, in typographic points, and which end of it is there.
SIDES = (
    *((8, -4, 'left'), (-8, -4, 'right'), (-6, -14, 'right'), (6, -14, 'left'), (6, 7, 'left'), (-6, 7, 'right')),
    *((0, -26, 'left'), (0, 19, 'right'), (0, -38, 'left'), (0, 31, 'right')),
)


def _write_names(axes, places: dict[str, tuple[float, float]]) -> None:
    """Each network's name beside its point, on the first of ``SIDES`` where it covers neither a point nor a name."""
    from matplotlib.transforms import Bbox

    points = [axes.transData.transform(place) for place in places.values()]
    taken = [Bbox([point - 5, point + 5]) for point in points]
    ground = dict(facecolor='white', alpha=0.8, linewidth=0, pad=1)  # lines stay behind a name
    for network, place in places.items():
        names = [
            axes.annotate(network, place, (x, y), textcoords='offset points', fontsize=9, ha=side, bbox=ground)
            for x, y, side in SIDES
        ]
        boxes = [name.get_window_extent() for name in names]
        free = [not box.count_overlaps(taken) and axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes]
        chosen = free.index(True) if any(free) else 0
        for name in names[:chosen] + names[chosen + 1 :]:
            name.remove()
        taken.append(boxes[chosen])
