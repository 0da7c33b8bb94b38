"""Which layers cost what: the weights of one alone rounded, the activations behind one alone with min-max ranges."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization.calibrate import Int8, quantize
from mobileone_ext.deploy.quantization.chain import in_chunks, layers_of
from mobileone_ext.text import markdown_table

from .quantizers import round_weights

PLAIN = Options(equalize=False, compensate=False, correct_bias=False, ranges='minmax')


@torch.no_grad()
def costs(model: nn.Module, photos: Tensor, held_out: Tensor) -> list[dict]:
    """For each layer ``layer``, ``weights`` and ``activations``: Kullback-Leibler divergence on ``held_out``.

    Weights have a scale for each channel; activations behind the layer, one for all, min-max over ``photos``.
    """
    expected = in_chunks(Int8(model), held_out).log_softmax(1)
    qparams = quantize(model, photos, PLAIN).qparams
    rows = []
    for index, layer in enumerate(layers_of(model)):
        rounded = copy.deepcopy(model)
        round_weights([layers_of(rounded)[index]], per_channel=True)
        coarse = Int8(model, qparams={name: own for name, own in qparams.items() if name == layer.name})
        divergences = (
            float(F.kl_div(in_chunks(one, held_out).log_softmax(1), expected, log_target=True, reduction='batchmean'))
            for one in (Int8(rounded), coarse)
        )
        rows.append(dict(zip(('layer', 'weights', 'activations'), (layer.name, *divergences))))
    return rows


def table(rows: Sequence[dict], count: int = 6) -> str:
    """Markdown: the ``count`` most expensive layers of each kind, and the sum of all."""
    ranked = [sorted(rows, key=lambda row: -row[kind])[:count] for kind in ('weights', 'activations')]
    lines = [
        (one['layer'], f'{one["weights"]:.4f}', other['layer'], f'{other["activations"]:.4f}')
        for one, other in zip(*ranked)
    ]
    sums = [sum(row[kind] for row in rows) for kind in ('weights', 'activations')]
    lines.append((f'sum of all {len(rows)}', f'{sums[0]:.4f}', 'sum', f'{sums[1]:.4f}'))
    return markdown_table(('weights alone', 'divergence', 'activations alone, min-max', 'divergence'), lines)
