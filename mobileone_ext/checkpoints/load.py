"""Read any MobileOne checkpoint safely, whatever wraps it, and load it strictly.

Files come from this package, mmpretrain, Apple's ml-mobileone or timm, branched
or fused, as torch or safetensors files. Torch and safetensors only.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..text import abbreviate, nfc, printable
from .layouts import HEAD, OWN, to_layout, to_own
from .names import resolve
from .pickles import CostlyPickle, check_pickle
from .structure import Structure, differences, other_head, read_structure, shapes_of

__all__ = ['Weights', 'load_strict', 'load_weights', 'read_checkpoint', 'to_layout']

EMA_CHOICES = ('auto', 'on', 'off')

_RAW_KEYS = ('state_dict', 'model_state_dict', 'model')
_EMA_KEYS = ('ema_state_dict', 'state_dict_ema', 'model_ema')
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LEGACY_PICKLES = 5
_MAX_HEADER = 16 << 20
_COUNTER = 'num_batches_tracked'
_BESIDE = ('neck.', 'head.', 'module.neck.', 'module.head.')  # buffers there may count
_ANY_DTYPES = (*_DTYPES, torch.int64, torch.int32, torch.uint8, torch.bool)
_COUNTS = ('steps', 'n_averaged')  # what averaged models hold beside their weights
CLASSES = 'classes'  # in the metadata of a safetensors file, and where mmengine writes them


@dataclass(frozen=True)
class Weights:
    """The weights of one MobileOne.

    Attributes:
        state: own names (mmpretrain's), ``backbone.`` and ``head.fc.``, in the order of the network.
        layout: the layout of the file: ``mmpretrain``, ``apple`` or ``timm``.
        source: where in the file they were, e.g. ``'state_dict (EMA)'``.
        ema: whether they are known to be an exponential moving average.
        structure: the network that they belong to.
        classes: names, in the order of the outputs; None if the file has none.
        extra: what a config has added: parameters of a neck, of another head or loss, of activations.
    """

    state: dict[str, Tensor]
    layout: str
    source: str
    ema: bool
    structure: Structure
    classes: tuple[str, ...] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """``'branched'`` or ``'fused'``."""
        return self.structure.form

    @property
    def published(self) -> bool:
        """Whether they are named as Apple or timm name them, so that what names no classes was trained on ImageNet."""
        return self.layout != OWN

    @property
    def num_classes(self) -> int | None:
        """None without a head."""
        return self.structure.num_classes


def read_checkpoint(path: str | Path, trust: bool = False) -> Any:
    """What a torch or safetensors file holds, on the CPU; ``path`` may be a name or address that names.py knows.

    No code of the file runs unless ``trust`` is set: then the file is unpickled
    as it stands, which lets whoever wrote it do anything.

    Raises:
        OSError: if there is no such file, or it cannot be downloaded.
        ValueError: if it is damaged, not a checkpoint, or holds pickled code.
    """
    source, path = path, resolve(path)
    with open(path, 'rb') as file:
        head = file.read(9)
    if not head:
        raise ValueError(f'{path}: the file is empty')
    try:
        if head[8:] == b'{':
            from safetensors.torch import load_file

            _check_header(path, int.from_bytes(head[:8], 'little'))
            return load_file(path)
        if not trust:
            _check_archive(path) if head.startswith(b'PK') else _check_legacy(path)
        return torch.load(path, map_location='cpu', weights_only=not trust)
    except Exception as error:  # a damaged file fails in torch, zipfile, pickle or safetensors, each in its own way
        code = error.name if isinstance(error, CostlyPickle) else _pickled_code(error)
        if code:
            code = _printable(code, 100)
            raise ValueError(
                f'{path}: holds pickled code ({code}), refused; --trust-checkpoint reads it if you trust its origin'
            ) from None
        remedy = '' if path == Path(source) else '; remove it to download it again'
        raise ValueError(f'{path}: damaged, or not a checkpoint ({_first_line(error)}){remedy}') from error


def load_weights(path: str | Path, ema: str = 'auto', trust: bool = False) -> Weights:
    """The weights in a checkpoint of any layout, form and wrapper, checked.

    Args:
        ema: which ones where a file holds two sets: ``auto`` and ``on`` take the
            averaged ones, ``off`` the trained ones. ``on`` needs an averaged set.
        trust: see :func:`read_checkpoint`.

    Raises:
        OSError, ValueError: for a file that cannot be read or is not a complete,
            finite MobileOne; the message names what does not fit.
    """
    checkpoint = read_checkpoint(path, trust)
    try:
        found, source, averaged = find_state(checkpoint, ema)
        _check_tensors(found)
        state, layout, extra = to_own(found)
        structure = read_structure(shapes_of(state))
        _check_values({**state, **extra})
    except ValueError as error:
        raise ValueError(f'{path}: {_printable(str(error))}') from None
    classes = class_names_in(path, checkpoint)
    if classes and len(classes) != structure.num_classes:
        classes = None
    state = {key: state[key] for key in structure.shapes()}
    return Weights(state, layout, source, averaged, structure, classes, extra=extra)


def class_names_in(path: str | Path, checkpoint: Any) -> tuple[str, ...] | None:
    """Names of classes in what :func:`read_checkpoint` read from ``path``; None if there are none."""
    names: Any = None
    path = resolve(path)
    with open(path, 'rb') as file:
        is_safetensors = file.read(9)[8:] == b'{'
    if is_safetensors:
        from safetensors import safe_open

        with safe_open(path, 'pt') as file, suppress(ValueError):
            names = json.loads((file.metadata() or {}).get(CLASSES, 'null'))
    elif isinstance(checkpoint, Mapping):
        meta = _as_mapping(checkpoint.get('meta'))
        names = _as_mapping(meta.get('dataset_meta')).get(CLASSES) or meta.get('CLASSES')
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(nfc, names)) or None


def _as_mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def load_strict(model: nn.Module, weights: Weights, name: str, backbone_only: bool = False) -> None:
    """Load ``weights`` into an mmpretrain ``ImageClassifier``, every key or none.

    Args:
        name: of the file, for messages.
        backbone_only: leave the model's head as it is, whatever head ``weights`` has.

    Raises:
        ValueError: if they don't fit: another form, variant or class count, or else the keys.
    """
    own = model.state_dict()
    state = {**weights.state, **weights.extra}
    if backbone_only:
        state = {**{key: own[key] for key in own if key.startswith('head.')}, **without_head(state)}
    problems = differences(shapes_of(own), shapes_of(state))
    if problems:
        raise ValueError(f'{name}: {_mismatch(own, weights, backbone_only) or "; ".join(problems)}')
    model.load_state_dict(state)


def in_order(weights: Weights, classes: Sequence[str]) -> Weights:
    """``weights`` with the head's outputs in the order of ``classes``, the same names as theirs."""
    known = {name: index for index, name in enumerate(weights.classes or ())}
    order = [known[nfc(name)] for name in classes]
    state = {key: value[order] if key.startswith(HEAD) else value for key, value in weights.state.items()}
    return replace(weights, state=state, classes=tuple(classes))


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` (own names) without the classifier."""
    return {key: tensor for key, tensor in state.items() if not key.startswith('head.')}


def _mismatch(own: dict[str, Tensor], weights: Weights, backbone_only: bool) -> str | None:
    """The one cause behind many differing keys, if there is one."""
    try:
        expected = read_structure(shapes_of(own))
    except ValueError:
        return None
    found = weights.structure
    both = f'holds {found}; the config builds {expected}'
    if (found.variant, found.widths, found.num_blocks) != (expected.variant, expected.widths, expected.num_blocks):
        return f'another network: it {both}'
    if found.form != expected.form:
        return f'another form: it {both}; tools/convert_checkpoint.py --branched un-fuses, tools/reparam.py fuses'
    if found.num_classes != expected.num_classes and not backbone_only:
        return f'another head: it {both}{other_head(shapes_of(own), shapes_of(weights.state))}'
    return None


def _check_header(path: str | Path, length: int) -> None:
    """Refuse a safetensors file whose list of tensors is longer than any network's."""
    if length > min(_MAX_HEADER, os.path.getsize(path) - 8):
        raise ValueError(f'a header of {length:,} bytes')


def _check_archive(path: str | Path) -> None:
    """Refuse a torch zip file whose records are damaged, unpack to more than the file holds, or build too much."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        if sum(record.file_size for record in archive.infolist()) > size:
            raise ValueError('its records unpack to more than the file holds')
        pickles = [name for name in archive.namelist() if name.rsplit('/', 1)[-1] == 'data.pkl']
        if len(pickles) > 1:
            raise ValueError(f'{len(pickles)} records data.pkl')
        for name in pickles:
            with archive.open(name) as stream:
                check_pickle(stream, size)
        damaged = archive.testzip()  # torch itself doesn't look at the checksums
        if damaged:
            raise ValueError(f'wrong checksum of {damaged}')


def _check_legacy(path: str | Path) -> None:
    """Refuse a file of torch before 1.6 whose pickles (magic number, version, system, content, keys) build too much."""
    with open(path, 'rb') as stream:
        if stream.read(1) != b'\x80':
            raise ValueError('no pickle')
        stream.seek(0)
        for _ in range(_LEGACY_PICKLES):
            if not check_pickle(stream, os.path.getsize(path)):
                break


def _pickled_code(error: Exception) -> str | None:
    """The name of the code that safe unpickling met, None if it failed for another reason."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = re.search(r'GLOBAL (\S+) (?:was not an allowed|whose module)', str(error))
    if named:
        return named[1]
    called = re.search(r'unrecognized function (.+)|Can only (?:build|create new object)', str(error))
    return (called[1] or 'an object') if called else None


def _printable(message: str, limit: int = 600) -> str:
    """``message`` for a terminal and not too long: it quotes keys of the file."""
    clipped = message if len(message) <= limit else message[:limit] + ' ...'
    return printable(clipped)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return _printable(f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__, 200)


def find_state(checkpoint: Any, ema: str) -> tuple[dict[str, Tensor], str, bool]:
    """The chosen state dict in what a file holds, the name of its place, and whether it is averaged."""
    if ema not in EMA_CHOICES:
        raise ValueError(f'ema={ema!r}: allowed are {", ".join(EMA_CHOICES)}')
    checkpoint = _as_state(checkpoint)
    if checkpoint is None:
        raise ValueError('holds no dict of tensors')
    trained = next((key for key in _RAW_KEYS if _as_state(checkpoint.get(key)) is not None), None)
    averaged = next((key for key in _EMA_KEYS if _as_state(checkpoint.get(key)) is not None), None)
    if trained is None and averaged is None:
        state = dict(checkpoint)
        # The state dict of mmengine's averaged models, or of torch's AveragedModel.
        bare = [key for key in _COUNTS if state.pop(key, None) is not None]
        if ema == 'on' and not bare:
            raise ValueError('holds one set of weights, not marked as averaged (EMA)')
        if ema == 'off' and bare:
            raise ValueError('holds averaged (EMA) weights alone')
        return state, 'the file itself (EMA)' if bare else 'the file itself', bool(bare)
    # mmengine's EMAHook swaps the two sets when it saves; only its averaged model counts "steps".
    if trained and averaged and 'steps' in checkpoint[averaged]:
        trained, averaged = averaged, trained
    if ema == 'on' and averaged is None:
        raise ValueError(f'holds no averaged (EMA) weights, only {trained}')
    if ema == 'off' and trained is None:
        raise ValueError(f'holds averaged (EMA) weights alone, in {averaged}')
    use_averaged = averaged is not None and ema != 'off'
    key = str(averaged if use_averaged else trained)
    state = dict(_as_state(checkpoint[key]) or {})
    for count in _COUNTS:
        state.pop(count, None)
    return state, f'{key} (EMA)' if use_averaged else key, use_averaged


def _as_state(value: Any) -> Mapping | None:
    if isinstance(value, nn.Module):
        return value.state_dict()
    return value if isinstance(value, Mapping) else None


def _check_tensors(state: dict[str, Tensor]) -> None:
    """Refuse what is not a plain tensor of weights; looks at no value, so a huge one costs nothing."""
    if not state:
        raise ValueError('holds no weights')
    strange = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise ValueError(f'entries that are not tensors: {abbreviate(strange)}')
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
            raise ValueError(f'{key} is not a plain dense tensor')
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f'{key} has shape {list(tensor.shape)}, more than is stored')
        if key.endswith(_COUNTER):
            if tensor.dtype != torch.int64:
                raise ValueError(f'{key} is {tensor.dtype} instead of torch.int64')
        elif tensor.dtype not in (_ANY_DTYPES if _may_count(key) else _DTYPES):
            raise ValueError(f'{key} is {tensor.dtype}; weights are {", ".join(map(str, _DTYPES))}')


def _may_count(key: str) -> bool:
    return key.startswith(_BESIDE) and not key.endswith(('.weight', '.bias'))


def _check_values(state: dict[str, Tensor]) -> None:
    numbers = {key: tensor for key, tensor in state.items() if not key.endswith(_COUNTER)}
    variances = {key: tensor for key, tensor in state.items() if key.endswith('running_var')}
    # All at once first: a thousand small reductions take a second on a busy machine.
    if not torch.isfinite(_flat(numbers)).all():
        _raise_first(numbers, lambda tensor: ~torch.isfinite(tensor), 'NaN or infinite values')
    if variances and (_flat(variances) < 0).any():
        _raise_first(variances, lambda tensor: tensor < 0, 'a negative variance')


def _flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in state.values()])


def _raise_first(state: dict[str, Tensor], is_bad: Callable[[Tensor], Tensor], what: str) -> None:
    for key, tensor in state.items():
        if is_bad(tensor).any():
            raise ValueError(f'{key} holds {what}')
