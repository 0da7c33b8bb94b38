"""Weights out of any checkpoint: read safely, whatever wraps them, and loaded strictly.

Files come from this package, mmpretrain, Apple's ml-mobileone or timm, branched or fused, as torch or safetensors
files; those of other networks have their own keys. Torch and safetensors only.
"""

import copy
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..metadata import Metadata
from ..text import nfc, one_line, shorten
from .layouts import HEAD, LAYOUTS, OWN, to_layout, to_own
from .names import resolve
from .pickles import CostlyPickle, check_pickle
from .structure import Structure, differences, other_head, read_structure, shapes_of

__all__ = ['Weights', 'load_weights', 'read_checkpoint', 'to_layout']

EMA_CHOICES = ('auto', 'on', 'off')

_RAW_KEYS = ('state_dict', 'model_state_dict', 'model')
_EMA_KEYS = ('ema_state_dict', 'state_dict_ema', 'model_ema')
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LEGACY_PICKLES = 5
_COUNTER = 'num_batches_tracked'
_COUNTS = ('steps', 'n_averaged')  # what averaged models hold beside their weights
_WRAPPER = 'module.'
CLASSES = 'classes'  # in the metadata of a safetensors file, and where mmengine writes them


@dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
        state: of a MobileOne by own names (mmpretrain's), ``backbone.`` and ``head.fc.``, in the order of the network;
            of another network by the keys of the file.
        name: of the file, for messages.
        source: where in the file they were, e.g. ``'state_dict (EMA)'``.
        classes: names, in the order of the outputs; None if the file has none.
        layout: of the file: ``mmpretrain``, ``apple`` or ``timm``; None for another network.
        structure: the MobileOne that they belong to; None for another network.
        extra: what a config has added to it: parameters of a neck, of another head or loss, of activations.
        said: what the file says of its network.
    """

    state: dict[str, Tensor]
    name: str
    source: str
    classes: tuple[str, ...] | None = None
    layout: str | None = None
    structure: Structure | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    said: Metadata = Metadata()

    @property
    def form(self) -> str | None:
        """``'branched'`` or ``'fused'``; None for another network."""
        return self.structure.form if self.structure else None

    @property
    def published(self) -> bool:
        """Whether they are named as Apple or timm name them, so that what names no classes was trained on ImageNet."""
        return self.layout not in (OWN, None)

    @property
    def num_classes(self) -> int | None:
        """None without a head, or for another network."""
        return self.structure.num_classes if self.structure else None

    def load_into(self, model: nn.Module, new_head: bool = False) -> None:
        """Load into an mmpretrain classifier, every key or none; fused ones fuse its backbone.

        Args:
            new_head: leave the model's head as it is.

        Raises:
            ValueError: if they don't fit: another form, variant or class count, or else the keys.
        """
        own, state = model.state_dict(), {**self.state, **self.extra}
        if new_head:
            state = {**{key: own[key] for key in own if key.startswith('head.')}, **without_head(state)}
        expected, actual = shapes_of(own), shapes_of(state)
        if differences(expected, actual):
            fused = copy.deepcopy(model)
            _fuse(fused)
            if differences(shapes_of(fused.state_dict()), actual):
                raise ValueError(f'{self.name}: {_misfit(expected, actual)}')
            _fuse(model)
        model.load_state_dict(state)


def _fuse(model: Any) -> None:
    """Fuse the backbone of ``model``, if it is one that can be."""
    if hasattr(getattr(model, 'backbone', None), 'switch_to_deploy'):
        model.backbone.switch_to_deploy()


def _misfit(expected: dict, actual: dict) -> str:
    """Why weights of these shapes do not fit: two MobileOnes that differ, or else the keys."""
    reason = f'does not fit the network of the config: {"; ".join(differences(expected, actual))}'
    with suppress(ValueError):
        wanted, held = read_structure(expected), read_structure(actual)
        if str(held) != str(wanted):
            reason = f'another network: it holds {held}; the config builds {wanted}'
        if held.form != wanted.form:
            reason += '; tools/convert_checkpoint.py --branched un-fuses, tools/reparam.py fuses'
    return reason + other_head(expected, actual)


def load_weights(path: str | Path, ema: str = 'auto', trust: bool = False, plain: bool = False) -> Weights:
    """The weights in a checkpoint of any layout, form and wrapper, checked.

    Args:
        ema: which ones where a file holds two sets: ``auto`` and ``on`` take the
            averaged ones, ``off`` the trained ones. ``on`` needs an averaged set.
        trust: see :func:`read_checkpoint`.
        plain: of any network, by its own keys.

    Raises:
        OSError, ValueError: for a file that cannot be read or is not a complete,
            finite MobileOne; the message names what does not fit.
    """
    checkpoint = read_checkpoint(path, trust)
    try:
        state, source = find_state(checkpoint, ema)
        state = _tensors_of(state)
        said = Metadata.read(_as_mapping(_as_mapping(checkpoint).get('meta')))
        weights = Weights(state, str(path), source, class_names_in(checkpoint), said=said)
        weights = replace(weights, state=_without_wrapper(state)) if plain else _as_mobileone(weights)
        _check_values({**weights.state, **weights.extra})
    except ValueError as error:
        raise ValueError(f'{path}: {shorten(str(error), 600)}') from None
    return weights


def _as_mobileone(weights: Weights) -> Weights:
    state, layout, extra = to_own(weights.state)
    for key, tensor in state.items():
        allowed = (torch.int64,) if key.endswith(_COUNTER) else _DTYPES
        if tensor.dtype not in allowed:
            raise ValueError(f'{key} is {tensor.dtype}, not {" or ".join(map(str, allowed))}')
    structure = read_structure(shapes_of(state))
    classes = weights.classes if len(weights.classes or ()) == structure.num_classes else None
    state = {key: state[key] for key in structure.shapes()}
    return replace(weights, state=state, layout=layout, structure=structure, classes=classes, extra=extra)


def _without_wrapper(state: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = all(key.startswith(_WRAPPER) for key in state)
    return {key[len(_WRAPPER) :] if wrapped else key: tensor for key, tensor in state.items()}


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
    try:
        if head[8:] == b'{':
            return _read_safetensors(path)
        if not trust:
            _check_archive(path) if head.startswith(b'PK') else _check_legacy(path)
        return torch.load(path, map_location='cpu', weights_only=not trust)
    except Exception as error:  # a damaged file fails in torch, zipfile, pickle or safetensors, each in its own way
        code = error.name if isinstance(error, CostlyPickle) else _pickled_code(error)
        what = f'damaged, or not a checkpoint ({shorten(f"{type(error).__name__}: {one_line(error)}", 200)})'
        remedy = '' if path == Path(source) else '; remove it to download it again'
        if code:
            what = f'holds pickled code ({shorten(code, 100)}), refused'
            remedy = '; --trust-checkpoint reads it if you trust its origin'
        elif not head:
            what = 'the file is empty'
        raise ValueError(f'{path}: {what}{remedy}') from error


def _read_safetensors(path: Path) -> dict:
    """Its tensors; with what else it says where a torch file has that, and class names as mmengine writes them."""
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
        meta: dict[str, Any] = dict(file.metadata() or {})
    meta.pop('format', None)  # which all of these files have
    if meta.get('layout') in LAYOUTS:  # of keys, in files of version 0.1; else it is that of images
        del meta['layout']
    with suppress(KeyError, ValueError):
        meta['dataset_meta'] = {CLASSES: json.loads(meta.pop(CLASSES))}
    return dict(state_dict=tensors, meta=meta) if meta else tensors


def class_names_in(checkpoint: Any) -> tuple[str, ...] | None:
    """Names of classes in what :func:`read_checkpoint` read; None if there are none."""
    meta = _as_mapping(_as_mapping(checkpoint).get('meta'))
    names = _as_mapping(meta.get('dataset_meta')).get(CLASSES) or meta.get('CLASSES')
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(nfc, names)) or None


def _as_mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def in_order(weights: Weights, classes: Sequence[str]) -> Weights:
    """``weights`` with the head's outputs in the order of ``classes``, the same names as theirs."""
    known = {name: index for index, name in enumerate(weights.classes or ())}
    order = [known[nfc(name)] for name in classes]
    state = {key: value[order] if key.startswith(HEAD) else value for key, value in weights.state.items()}
    return replace(weights, state=state, classes=tuple(classes))


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` (own names) without the classifier."""
    return {key: tensor for key, tensor in state.items() if not key.startswith('head.')}


def _check_archive(path: Path) -> None:
    """Refuse a torch zip file whose records are damaged, unpack to more than the file holds, or build too much."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        if sum(record.file_size for record in archive.infolist()) > size:
            raise ValueError('its records unpack to more than the file holds')
        pickles = [name for name in archive.namelist() if name.rsplit('/', 1)[-1] == 'data.pkl']
        if len(pickles) > 1:  # torch may take the other one
            raise ValueError(f'{len(pickles)} records data.pkl')
        for name in pickles:
            with archive.open(name) as stream:
                check_pickle(stream, size)
        damaged = archive.testzip()  # torch itself doesn't look at the checksums
        if damaged:
            raise ValueError(f'wrong checksum of {damaged}')


def _check_legacy(path: Path) -> None:
    """Refuse a file of torch before 1.6 whose pickles (magic number, version, system, content, keys) build too much."""
    with open(path, 'rb') as stream:
        for _ in range(_LEGACY_PICKLES):
            if not check_pickle(stream, os.path.getsize(path)):
                break


def _pickled_code(error: Exception) -> str | None:
    """The name of the code that safe unpickling met, None if it failed for another reason."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    global_or_call = r'GLOBAL (\S+) (?:was not an allowed|whose module)|unrecognized function (.+)'
    named = re.search(global_or_call + '|Can only (?:build|create new object)', str(error))
    return (named[1] or named[2] or 'an object') if named else None


def find_state(checkpoint: Any, ema: str) -> tuple[Mapping, str]:
    """The chosen state dict in what a file holds, and the name of its place."""
    if ema not in EMA_CHOICES:
        raise ValueError(f'ema={ema!r}: allowed are {", ".join(EMA_CHOICES)}')
    checkpoint = _as_state(checkpoint)
    if checkpoint is None:
        raise ValueError('holds no dict of tensors')
    trained = next((key for key in _RAW_KEYS if _as_state(checkpoint.get(key)) is not None), None)
    averaged = next((key for key in _EMA_KEYS if _as_state(checkpoint.get(key)) is not None), None)
    if trained is None and averaged is None:
        # The state dict of mmengine's averaged models, or of torch's AveragedModel, or trained weights.
        place, is_averaged = 'the file itself', any(key in checkpoint for key in _COUNTS)
        trained, averaged = (None, place) if is_averaged else (place, None)
        checkpoint = {place: checkpoint}
    # mmengine's EMAHook swaps the two sets when it saves; only its averaged model counts "steps".
    elif trained and averaged and 'steps' in checkpoint[averaged]:
        trained, averaged = averaged, trained
    if ema == 'on' and averaged is None:
        raise ValueError(f'holds no averaged (EMA) weights, only {trained}')
    if ema == 'off' and trained is None:
        raise ValueError(f'holds averaged (EMA) weights alone, in {averaged}')
    use_averaged = averaged is not None and ema != 'off'
    key = str(averaged if use_averaged else trained)
    return _as_state(checkpoint[key]) or {}, f'{key} (EMA)' if use_averaged else key


def _as_state(value: Any) -> Mapping | None:
    if isinstance(value, nn.Module):
        return value.state_dict()
    return value if isinstance(value, Mapping) else None


def _tensors_of(state: Mapping) -> dict[str, Tensor]:
    """The tensors of weights; looks at no value, so a huge one costs nothing."""
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for count in _COUNTS:
        tensors.pop(count, None)
    for key, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == 'cpu' and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f'{key} is not a plain dense tensor, or larger than what is stored')
    if not tensors:
        raise ValueError('holds no weights')
    return tensors


def _check_values(state: dict[str, Tensor]) -> None:
    numbers = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    variances = {key: tensor for key, tensor in numbers.items() if key.endswith('running_var')}
    for what, part, is_bad in (
        ('NaN or infinite values', numbers, lambda tensor: ~torch.isfinite(tensor)),
        ('a negative variance', variances, lambda tensor: tensor < 0),
    ):
        # All at once first: a thousand small reductions take a second on a busy machine.
        if part and is_bad(torch.cat([tensor.reshape(-1) for tensor in part.values()])).any():
            key = next(key for key, tensor in part.items() if is_bad(tensor).any())
            raise ValueError(f'{key} holds {what}')
