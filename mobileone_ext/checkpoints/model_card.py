"""The page that lies beside a converted checkpoint: what it is, and where it comes from."""

import os
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..provenance import sha256
from ..text import as_markdown, markdown_table
from .load import Weights

_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


def num_parameters(state: dict[str, Tensor]) -> int:
    """How many numbers are learned; the statistics of batch norm are not."""
    return sum(tensor.numel() for key, tensor in state.items() if not key.endswith(_BUFFERS))


def model_card(
    path: Path, layout: str, weights: Weights, source: Path, original: Weights, note: str | None, terms: str
) -> str:
    """Markdown about the file at ``path``, which holds ``weights`` in ``layout``.

    Args:
        source, original: the file that it was made from, and the weights that were in there.
        note: what else was done to them.
        terms: of their license.
    """
    structure = weights.structure
    assert structure, 'a MobileOne'
    rows = {
        'network': f'MobileOne-{structure.variant}' if structure.variant else f'MobileOne, widths {structure.widths}',
        'variant': structure.variant or 'none of the published ones',
        'form': weights.form,
        'branches': None if weights.form == 'fused' else ', '.join(map(str, structure.num_conv_branches)),
        'classes': 'none: a backbone without a head' if weights.num_classes is None else weights.num_classes,
        'parameters': f'{num_parameters(weights.state):,}',
        'tensors': f'{len(weights.state):,}',
        'layout': f'{layout} (also that of mobileone_ext)' if layout == 'mmpretrain' else layout,
        'file': f'{path.name}, {os.path.getsize(path):,} bytes',
        'sha256': sha256(path),
        'source': source.name,
        'source sha256': sha256(source),
        'source layout': f'{original.layout}, {original.form}, taken from {original.source}',
        'done to it': note or 'renamed; every number is as it was',
        'written by': f'mobileone_ext {__version__}, torch {torch.__version__}',
    }
    table = markdown_table(('', ''), ((name, value) for name, value in rows.items() if value is not None))
    return f"""# {as_markdown(path.name)}

{table}

License: {as_markdown(terms)}.
"""
