"""The names that three code bases give to the weights of MobileOne, as one table.

``mmpretrain`` is also this package's own layout; ``apple`` is ml-mobileone's,
``timm`` that of pytorch-image-models. Nothing here looks at a tensor's values.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from ..text import abbreviate

OWN = 'mmpretrain'
LAYOUTS = (OWN, 'apple', 'timm')
BACKBONE = 'backbone.'
HEAD = 'head.fc.'

# Columns as in LAYOUTS; '#' is a number, and the name of a parameter or buffer follows.
# Own keys without their 'backbone.', which a bare backbone leaves out.
_PLACES = (
    ('stage0.', 'stage0.', 'stem.'),
    *((f'stage{i}.#.', f'stage{i}.#.', f'stages.{i - 1}.#.') for i in (1, 2, 3, 4)),
)
_PARTS = (
    ('branch_conv_list.#.conv.', 'rbr_conv.#.conv.', 'conv_kxk.#.conv.'),
    ('branch_conv_list.#.norm.', 'rbr_conv.#.bn.', 'conv_kxk.#.bn.'),
    ('branch_scale.conv.', 'rbr_scale.conv.', 'conv_scale.conv.'),
    ('branch_scale.norm.', 'rbr_scale.bn.', 'conv_scale.bn.'),
    ('branch_norm.', 'rbr_skip.', 'identity.'),
    ('branch_reparam.', 'reparam_conv.', 'reparam_conv.'),
    ('se.conv1.conv.', 'se.reduce.', 'attn.fc1.'),
    ('se.conv2.conv.', 'se.expand.', 'attn.fc2.'),
)
_ROWS = (
    *(tuple(map(''.join, zip(place, part))) for place in _PLACES for part in _PARTS),
    (HEAD, 'linear.', HEAD),
)


_HEADS = _ROWS[-1]


def _pattern(name: str) -> 're.Pattern':
    return re.compile(re.escape(name).replace(re.escape('#'), '([0-9]+)') + r'(\w+)\Z')


_PATTERNS = {layout: [_pattern(row[column]) for row in _ROWS] for column, layout in enumerate(LAYOUTS)}

# Around the keys: DistributedDataParallel and averaged models, torch.compile, Lightning.
_WRAPPERS = ('module.', '_orig_mod.', 'model.')


# Parameters that a config adds beside MobileOne's own: of the neck (which is no single layer), of another head or a
# loss, of an activation, of branches of other types.
_EXTRA = re.compile(
    r'neck\.(?!(weight|bias)\Z)|(head|data_preprocessor|teacher)\.'
    r'|backbone\.stage[0-4]\.([0-9]+\.)?((se\.conv[12]\.)?(act|activate)|branch_list\.[0-9]+)\.'
)


def translate(key: str, source: str, target: str) -> str | None:
    """The name in layout ``target`` of what layout ``source`` calls ``key``; None if it calls nothing so.

    Keys of the backbone are given without ``backbone.``, in every layout.
    """
    column = LAYOUTS.index(target)
    for pattern, row in zip(_PATTERNS[source], _ROWS):
        match = pattern.match(key)
        if match:
            *numbers, name = match.groups()
            parts = row[column].split('#')
            return ''.join(part + number for part, number in zip(parts, [*numbers, ''])) + name
    return None


def detect_layout(keys: Iterable[str]) -> str | None:
    """The layout that knows most of ``keys`` (as in :func:`translate`), None if none knows any."""
    keys = list(keys)
    known = {layout: sum(translate(key, layout, layout) is not None for key in keys) for layout in LAYOUTS}
    best = max(LAYOUTS, key=lambda layout: known[layout])
    return best if known[best] else None


def to_own(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, dict[str, Tensor]]:
    """``state`` under own names, the layout that it had, and what a config has added to the network.

    Prefixes that all keys share (``module.`` and such) and a ``backbone.`` are taken off first.

    Raises:
        ValueError: if the keys are not MobileOne's, naming the ones that are not.
    """
    bare = [key[len(BACKBONE) :] if key.startswith(BACKBONE) else key for key in _without_wrappers(state)]
    layout = detect_layout(key for key in bare if not key.startswith(_HEADS))  # others have a head.fc as well
    if layout is None:
        raise ValueError(
            f'no key of MobileOne in any layout ({", ".join(LAYOUTS)}); found {abbreviate(state)}: another network, '
            'which tools/train.py, test.py, predict.py and export.py take by its config'
        )
    own, extra, unknown = {}, {}, []
    for key, name, tensor in zip(bare, state, state.values()):
        translated = translate(key, layout, OWN)
        if translated is None:
            full = key if key.startswith(('neck.', 'head.', 'data_preprocessor.', 'teacher.')) else BACKBONE + key
            if layout == OWN and _EXTRA.match(full):
                extra[full] = tensor
            else:
                unknown.append(name)
            continue
        translated = translated if translated.startswith(HEAD) else BACKBONE + translated
        if translated in own:
            raise ValueError(f'{name} is there twice, with and without {BACKBONE}')
        own[translated] = tensor
    if unknown:
        raise ValueError(f'keys that are not of MobileOne in the {layout} layout: {abbreviate(unknown)}')
    return own, layout, extra


def to_layout(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """``state`` (own names) under the names of ``layout``.

    Raises:
        ValueError: for an unknown layout, or a key that is not an own one.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout {layout!r} is unknown; known are {", ".join(LAYOUTS)}')
    if layout == OWN:
        return dict(state)
    renamed = {}
    for key, tensor in state.items():
        name = translate(key[len(BACKBONE) :] if key.startswith(BACKBONE) else key, OWN, layout)
        if name is None:
            raise ValueError(f'{key} is not a key of MobileOne')
        renamed[name] = tensor
    return renamed


def _without_wrappers(keys: Iterable[str]) -> list:
    keys = list(keys)
    while True:
        shared = next((prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in keys)), None)
        if not keys or shared is None:
            return keys
        keys = [key[len(shared) :] for key in keys]
