"""What a trained classifier says of itself: the same in every exported file, in checkpoints and in a page.

Stored as strings by name, which is what ONNX's properties, the header of safetensors and the entries of other formats
hold: words as they are, all else as JSON. In a checkpoint they stand in ``meta``, as strings or as values.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

# Of pixels in gray levels, RGB.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NORMALIZED = 'normalized pixels: (x - mean) / std'
_CROP = 0.875  # of the shorter edge, where a file says no more than its size
_LARGEST = 8192  # pixels
_SCOPES = ('mmpretrain.', 'mmcv.', 'mobileone_ext.')
PAD = (124, 116, 104)  # RGB, around a photo that is padded: the mean of ImageNet's photos, as timm has it


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(kind, value))


# What is no word, and what it has to be.
_VALUES: dict[str, Callable[[Any], bool]] = dict(
    labels=_are(lambda name: isinstance(name, str)),
    size=lambda sides: _are(lambda side: isinstance(side, int) and 0 < side <= _LARGEST)(sides) and len(sides) == 2,
    crop=lambda share: _is_number(share) and 0.1 <= share <= 1,
    mean=_are(_is_number),
    std=_are(_is_number),
    temperature=lambda value: _is_number(value) and value > 0,
    threshold=lambda value: _is_number(value) or _are(_is_number)(value),
    versions=lambda value: isinstance(value, dict),
)


@dataclass(frozen=True)
class Metadata:
    """What goes into a network, what comes out, and where it comes from; None for what is not said.

    Attributes:
        labels: names of the classes in the order of the outputs; their numbers where there are none.
        size: height and width of the image in pixels.
        fit: how a photo gets that size: ``'crop'`` makes the shorter edge ``min(size) / crop`` pixels,
            rounded, and cuts out the middle; ``'pad'`` makes the longer one fit, and fills both sides of the other with
            ``PAD``; ``'squash'`` forgets its proportions.
        crop: the share of the shorter edge that the crop keeps.
        interpolation: ``'bilinear'``, ``'bicubic'``...
        backend: ``'pillow'``, which averages when it shrinks, or ``'cv2'``, which does not.
        channels: ``'RGB'``, ``'BGR'`` or ``'gray'``.
        mean, std: one for each channel, in gray levels 0 .. 255.
        input: what enters, a text that begins with ``'pixels'`` (0 .. 255) or ``'normalized'``.
        output: ``'logits'`` or ``'probabilities'``.
        labels_of_an_image: ``'several'`` where each label has a score of its own.
        temperature: by which logits, or the logarithms of probabilities, are divided before the softmax or sigmoid.
        threshold: the least score of an answer; below it an image is none of the classes. With several labels an image,
            one for each label.
        source, source_sha256: name and hash of the file that it was made from.
        versions: distribution -> version, of what made it.
        architecture: of a checkpoint, the name by which :func:`mobileone_ext.models.create_model` builds its network.
        layout: of the images, ``'NCHW'`` or ``'NHWC'``.
        precision: ``'float32'``, ``'float16'`` or ``'int8'``.
        others: what else is said, by name.
    """

    labels: Sequence[str] | None = None
    size: Sequence[int] | None = None
    fit: str | None = None
    crop: float | None = None
    interpolation: str | None = None
    backend: str | None = None
    channels: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input: str | None = None
    output: str | None = None
    labels_of_an_image: str | None = None
    temperature: float | None = None
    threshold: float | Sequence[float] | None = None
    source: str | None = None
    source_sha256: str | None = None
    versions: Mapping[str, str] | None = None
    architecture: str | None = None
    layout: str | None = None
    precision: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> 'Metadata':
        """From :meth:`write` or :meth:`values`, or an older file; what is not of its kind counts as not said."""
        known = {field.name for field in fields(cls)} - {'others'}
        values = {name: _value_of(name, stored[name]) for name in known & stored.keys()}
        if 'fit' not in stored and 'preprocessing' in stored:  # an older file has the steps themselves
            with suppress(
                AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError
            ):  # steps of nobody knows whom
                values = fit_of(_parsed(stored['preprocessing'])) | values
        threshold = values.get('threshold')
        if isinstance(threshold, list | tuple) and len(threshold) != len(values.get('labels') or ()):
            values['threshold'] = None
        others = {name: text for name, text in stored.items() if name not in known and isinstance(text, str)}
        return cls(**values, others=others)

    def values(self) -> dict[str, Any]:
        """All that is said, as JSON has it."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != 'others'}
        return {name: value for name, value in own.items() if value is not None} | dict(self.others)

    def write(self) -> dict[str, str]:
        """All that is said, as strings."""
        return {name: json.dumps(value) if name in _VALUES else value for name, value in self.values().items()}

    @property
    def takes_pixels(self) -> bool | None:
        """Whether pixels 0 .. 255 or normalized ones go in."""
        return self.input.startswith('pixels') if self.input else None

    @property
    def names(self) -> list[str] | None:
        """The labels, where they are more than numbers."""
        names = list(self.labels or ())
        return names if names != [str(index) for index in range(len(names))] else None

    @property
    def says_fit(self) -> bool:
        """Whether it is said how a photo gets its size."""
        return self.fit is not None and (self.fit != 'crop' or self.crop is not None)

    @property
    def edge(self) -> int:
        """Pixels that a crop makes the shorter edge."""
        return round(min(self.size or ()) / (self.crop or _CROP))

    @property
    def says_images(self) -> bool:
        """Whether this alone tells how a photo is prepared."""
        return bool(self.input and self.mean and self.std and self.pipeline())

    @property
    def is_enough(self) -> bool:
        """Whether this alone tells how a photo is prepared, and the names of the classes."""
        return bool(self.labels and self.says_images)

    @property
    def note(self) -> str:
        """What a user is told of the network that this describes."""
        unsaid = f'how photos are resized: the shorter edge to {self.edge} pixels, the middle cut out'
        return 'described by its metadata' + ('' if self.says_fit else f', which do not say {unsaid}')

    def pipeline(self) -> list[dict] | None:
        """The steps of mmpretrain's pipeline that prepare a photo; of a crop, where no more is known than the size."""
        if self.size is None:
            return None
        (height, width), fit = self.size, self.fit or 'crop'
        how = dict(interpolation=self.interpolation or 'bilinear', backend=self.backend or 'pillow')
        resize: dict[str, list[dict]] = dict(
            crop=[
                dict(type='ResizeEdge', scale=self.edge, edge='short', **how),
                dict(type='CenterCrop', crop_size=(width, height)),
            ],
            pad=[dict(type='mobileone_ext.ResizePad', scale=(width, height), **how)],
            squash=[dict(type='Resize', scale=(width, height), **how)],
        )
        color = dict(color_type='grayscale') if self.channels == 'gray' else {}
        load, pack = dict(type='mobileone_ext.LoadImageFromFile', **color), dict(type='PackInputs')
        return [load, *resize[fit], pack] if fit in resize else None


def metadata_of(network: object, told: Metadata | None = None) -> Metadata:
    """What is ``told`` of a network in memory, or its attribute ``metadata`` says; where neither does, it takes
    ImageNet's 224 pixels, mean and standard deviation, normalized."""
    usual = Metadata(size=(224, 224), channels='RGB', mean=IMAGENET_MEAN, std=IMAGENET_STD, input=NORMALIZED)
    said = (usual, getattr(network, 'metadata', None), told)
    return Metadata.read({name: value for one in said if one for name, value in one.values().items()})


def _value_of(name: str, stored: Any) -> Any:
    value = _parsed(stored) if name in _VALUES else stored
    is_of_its_kind = _VALUES.get(name, lambda word: isinstance(word, str))
    return value if is_of_its_kind(value) else None


def _parsed(stored: Any) -> Any:
    try:
        return json.loads(stored) if isinstance(stored, str) else stored
    except ValueError:
        return None


def as_lines(labels: Sequence[str]) -> str:
    """The text of a file of labels, a line each."""
    return ''.join(f'{" ".join(label.split())}\n' for label in labels)


def fit_of(pipeline: Sequence[Mapping]) -> dict[str, Any]:
    """``size``, ``fit``, ``crop``, ``interpolation``, ``backend`` of a test pipeline, and ``channels`` of a gray one.

    Empty for other steps than to load an image, resize or pad it, or its shorter edge and cut out the middle, and pack
    it.
    """
    match [(_kind_of(step), step) for step in pipeline]:
        case [('LoadImageFromFile', load), ('Resize', resize), ('PackInputs', _)]:
            fit, cut, own = 'squash', resize['scale'], dict[str, Any](keep_ratio=False)
        case [('LoadImageFromFile', load), ('ResizePad', resize), ('PackInputs', _)]:
            fit, cut, own = 'pad', resize['scale'], dict[str, Any]()
        case [('LoadImageFromFile', load), ('ResizeEdge', resize), ('CenterCrop', crop), ('PackInputs', _)]:
            fit, cut, own = 'crop', crop['crop_size'], dict[str, Any](edge='short')
        case _:
            return {}
    width, height = cut if isinstance(cut, Sequence) else (cut, cut)
    backend = 'pillow' if fit == 'pad' else 'cv2'
    options = dict(interpolation='bilinear', backend=backend, **own)  # as they are where a step leaves them out
    options |= {key: value for key, value in resize.items() if key not in ('type', 'scale')}
    color = load.get('color_type', 'color')
    found = dict(
        size=[height, width], fit=fit, interpolation=options.pop('interpolation'), backend=options.pop('backend')
    )
    if fit == 'crop':
        found['crop'] = min(cut if isinstance(cut, Sequence) else [cut]) / resize['scale']
    if color == 'grayscale':
        found['channels'] = 'gray'
    is_known = options == own and color in ('color', 'grayscale') and not load.get('to_float32')
    return found if is_known and all(_value_of(name, value) for name, value in found.items()) else {}


def _kind_of(step: Mapping) -> str:
    kind = str(step.get('type'))
    return next((kind.removeprefix(scope) for scope in _SCOPES if kind.startswith(scope)), kind)
