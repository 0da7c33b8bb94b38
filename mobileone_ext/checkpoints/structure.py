"""Which MobileOne a set of weights belongs to, read from its keys and shapes.

MobileOne, arXiv 2206.04040, Table 7 and Fig. 3. Keys are own ones (layouts.py).
A file is held against the whole network that it describes, so a tensor that is
missing, left over or of another shape is named.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ..arch import ARCHS, resolve_arch, stage_widths
from ..text import abbreviate
from .layouts import HEAD

STAGES = (1, 2, 3, 4)
Shape = tuple[int, ...]

_BLOCK = re.compile(r'(backbone\.stage([0-4])\.(?:([0-9]+)\.)?)(.+)')
_BRANCH = re.compile(r'branch_conv_list\.([0-9]+)\.')
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


@dataclass(frozen=True)
class Structure:
    """A network: everything that decides the keys and shapes of its weights.

    Tuples hold a number for each of the four stages, ``widths`` and
    ``num_conv_branches`` also one for the stem, first. ``num_blocks`` counts pairs of a
    depthwise and a pointwise block. ``squeeze`` maps the prefix of a block with
    squeeze-and-excitation to its inner width; ``affine``: norms have weights and biases.
    A fused network keeps no trace of its branches.
    """

    form: str
    in_channels: int
    num_blocks: tuple[int, ...]
    widths: tuple[int, ...]
    num_conv_branches: tuple[int, ...]
    use_scale: bool
    use_skip: bool
    squeeze: dict[str, int]
    num_classes: int | None
    affine: bool = True

    @property
    def variant(self) -> str | None:
        """``'s0'`` .. ``'s4'`` by blocks, widths and SE blocks; None for another network."""
        for name in ARCHS:
            arch = resolve_arch(name)
            if (self.num_blocks, self.widths) == (tuple(arch['num_blocks']), tuple(stage_widths(arch))):
                return name if set(self.squeeze) == set(_se_blocks(arch)) else None
        return None

    def __str__(self) -> str:
        name = f'MobileOne-{self.variant}' if self.variant else f'MobileOne of widths {list(self.widths)}'
        form = self.form if self.form == 'fused' else f'branched (k = {_briefly(self.num_conv_branches[1:])})'
        head = 'without a head' if self.num_classes is None else f'{self.num_classes} classes'
        return f'{name}, {form}, {head}'

    def shapes(self) -> dict[str, Shape]:
        """Every key of the network, in the order of its state dict, and the shape of its tensor."""
        shapes = self._block_shapes('backbone.stage0.', self.in_channels, self.widths[0], 3, 1, 2, stage=0)
        width = self.widths[0]
        for stage, blocks, out in zip(STAGES, self.num_blocks, self.widths[1:]):
            for i in range(blocks):
                stride = 2 if i == 0 else 1
                depthwise, pointwise = (f'backbone.stage{stage}.{2 * i + j}.' for j in (0, 1))
                shapes.update(self._block_shapes(depthwise, width, width, 3, width, stride, stage))
                shapes.update(self._block_shapes(pointwise, width, out, 1, 1, 1, stage))
                width = out
        if self.num_classes is not None:
            shapes.update({HEAD + 'weight': (self.num_classes, width), HEAD + 'bias': (self.num_classes,)})
        return shapes

    def _block_shapes(
        self, prefix: str, width_in: int, width: int, kernel: int, groups: int, stride: int, stage: int
    ) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        weight = (width, width_in // groups, kernel, kernel)
        if self.form == 'fused':
            shapes.update({'branch_reparam.weight': weight, 'branch_reparam.bias': (width,)})
        else:
            if self.use_skip and width_in == width and stride == 1:
                shapes.update(_norm_shapes('branch_norm.', width, self.affine))
            if self.use_scale and kernel > 1:
                shapes['branch_scale.conv.weight'] = (*weight[:2], 1, 1)
                shapes.update(_norm_shapes('branch_scale.norm.', width, self.affine))
            for i in range(self.num_conv_branches[stage]):
                shapes[f'branch_conv_list.{i}.conv.weight'] = weight
                shapes.update(_norm_shapes(f'branch_conv_list.{i}.norm.', width, self.affine))
        if prefix in self.squeeze:
            inner = self.squeeze[prefix]
            shapes.update({'se.conv1.conv.weight': (inner, width, 1, 1), 'se.conv1.conv.bias': (inner,)})
            shapes.update({'se.conv2.conv.weight': (width, inner, 1, 1), 'se.conv2.conv.bias': (width,)})
        return {prefix + name: shape for name, shape in shapes.items()}


def shapes_of(state: dict[str, Tensor]) -> dict[str, Shape]:
    """The shape of every tensor of a state dict."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def read_structure(shapes: dict[str, Shape]) -> Structure:
    """The network whose weights have these ``shapes`` (by own keys), checked key by key.

    Where tensors disagree the majority decides, so that the odd one is what the error names.

    Raises:
        ValueError: if keys are missing or left over, or shapes don't fit together.
    """
    # (stage, block) -> {name within the block: shape}; the stem is block 0 of stage 0.
    blocks: dict[tuple[int, int], dict[str, Shape]] = defaultdict(dict)
    for key, shape in shapes.items():
        match = _BLOCK.match(key)
        if match:
            blocks[int(match[2]), int(match[3] or 0)][match[4]] = shape

    indices = {stage: {block for number, block in blocks if number == stage} for stage in (0, *STAGES)}
    absent = [f'stage{stage}' for stage in indices if not indices[stage]]
    if absent:
        raise ValueError(f'nothing of {abbreviate(absent)}')

    names = [name for block in blocks.values() for name in block]
    fused = [name for name in names if name.startswith('branch_reparam.')]
    if fused and any(name.startswith('branch_') and name not in fused for name in names):
        raise ValueError('some blocks are fused and others have branches')

    def outputs(stage: int) -> Iterator[int]:
        """Leading dimensions in the blocks that give a stage its width."""
        for block in indices[stage]:
            if stage == 0 or block % 2:
                yield from (s[0] for name, s in blocks[stage, block].items() if s and not name.startswith('se.'))

    squeeze = {}
    for (stage, block), tensors in blocks.items():
        if any(name.startswith('se.') for name in tensors):
            prefix = 'backbone.stage0.' if stage == 0 else f'backbone.stage{stage}.{block}.'
            squeeze[prefix] = next((s[0] for name, s in tensors.items() if name.startswith('se.conv1.') and s), 0)

    structure = Structure(
        form='fused' if fused else 'branched',
        in_channels=_majority(s[1] for name, s in blocks[0, 0].items() if len(s) == 4 and not name.startswith('se.')),
        num_blocks=tuple((len(indices[stage]) + 1) // 2 for stage in STAGES),
        widths=tuple(_majority(outputs(stage)) for stage in indices),
        num_conv_branches=tuple(
            _majority(len(set(_BRANCH.findall(' '.join(blocks[stage, block])))) for block in indices[stage])
            for stage in indices
        ),
        use_scale=any(name.startswith('branch_scale.') for name in names),
        use_skip=any(name.startswith('branch_norm.') for name in names),
        squeeze=squeeze,
        affine=bool(fused) or any(re.search(r'norm\.(weight|bias)$', name) for name in names),
        num_classes=_majority(s[0] for key, s in shapes.items() if s and key.startswith(HEAD)) or None,
    )
    if not all((structure.in_channels, *structure.widths)):
        raise ValueError(f'not every width can be read: image {structure.in_channels}, stages {structure.widths}')
    problems = differences(structure.shapes(), shapes)
    if problems:
        raise ValueError(f'looks like {structure}, but {"; ".join(problems)}')
    return structure


def differences(expected: dict[str, Shape], actual: dict[str, Shape]) -> list[str]:
    """What keeps ``actual`` from being ``expected``, as phrases; empty if nothing does."""
    problems = []
    missing = [key for key in expected if key not in actual]
    surplus = [key for key in actual if key not in expected]
    differing = [key for key, shape in expected.items() if key in actual and actual[key] != shape]
    wrong = [f'{key} {list(actual[key])} instead of {list(expected[key])}' for key in differing]
    if missing:
        problems.append(f'{_keys(missing)} missing: {abbreviate(missing)}')
    if surplus:
        problems.append(f'{_keys(surplus)} too many: {abbreviate(surplus)}')
    if wrong:
        problems.append(f'wrong shape: {abbreviate(wrong)}')
    return problems


def other_head(expected: dict[str, Shape], actual: dict[str, Shape]) -> str:
    """What to do if ``actual`` is ``expected`` but for the number of classes; empty for any other difference."""
    wrong = [key for key in expected if expected[key] != actual.get(key)]
    others = [key for key in wrong if expected[key][1:] != actual.get(key, ())[1:]]
    layers, counts = {key.rpartition('.')[0] for key in wrong}, {actual[key][0] for key in wrong if actual.get(key)}
    if set(actual) != set(expected) or others or len(layers) != 1 or len(counts) != 1:
        return ''
    place = 'model.head' if 'head' in layers.pop().split('.') else 'model'  # timm's networks have none
    return f'; --cfg-options {place}.num_classes={counts.pop()} builds a head like that'


def _se_blocks(arch: dict) -> Iterator[str]:
    for stage, blocks, se_blocks in zip(STAGES, arch['num_blocks'], arch['num_se_blocks']):
        for block in range(2 * (blocks - se_blocks), 2 * blocks):
            yield f'backbone.stage{stage}.{block}.'


def _norm_shapes(prefix: str, width: int, affine: bool) -> dict[str, Shape]:
    return {
        **{prefix + name: (width,) for name in (_NORM if affine else _NORM[2:])},
        prefix + 'num_batches_tracked': (),
    }


def _majority(numbers: Iterable[int]) -> int:
    counts = Counter(numbers).most_common(1)
    return counts[0][0] if counts else 0


def _briefly(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else str(list(numbers))


def _keys(keys: list[str]) -> str:
    return f'{len(keys)} key{"s" if len(keys) > 1 else ""}'
