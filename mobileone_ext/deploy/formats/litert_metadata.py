"""LiteRT's own model metadata, which Android Studio and ``MetadataExtractor`` read.

A flatbuffer of the schema ``metadata_schema.fbs`` (identifier M001) in the model's metadata entry TFLITE_METADATA, and
the files that it names in a zip archive behind the model. No package for it is kept up for today's Python, so the few
tables are written here; the numbers are the fields' places in that schema.
"""

import io
import json
import zipfile
from collections.abc import Sequence

from ...metadata import Metadata, as_lines
from . import OUTPUT_NAME
from .base import Request

LABELS_FILE, METADATA_FILE = 'labels.txt', 'metadata.json'
_TENSOR_AXIS_LABELS = 2  # of AssociatedFileType: a line for each class
_IMAGE_PROPERTIES = 2  # of the union ContentProperties
_NORMALIZATION_OPTIONS = 1  # of the union ProcessUnitOptions
_RGB = 1  # of ColorSpaceType; there is none for BGR


def model_metadata(request: Request) -> bytes:
    """The flatbuffer: name, image size and color, mean and std that are left to the caller, the file of labels."""
    import flatbuffers

    metadata = request.metadata
    builder = flatbuffers.Builder(1024)
    height, width = request.sides
    image_size = _table(builder, [('Uint32', width, 0), ('Uint32', height, 0)])
    color = _RGB if metadata.get('channels') == 'RGB' else 0
    properties = _table(builder, [('Int8', color, 0), ('offset', image_size)])
    content = _table(builder, [('Uint8', _IMAGE_PROPERTIES, 0), ('offset', properties)])
    units = None
    if 'input' in metadata:
        # MediaPipe's ImageClassifier asks for numbers of a file that takes pixels too.
        left = metadata if metadata['input'].startswith('normalized') else dict(mean='[0.0]', std='[1.0]')
        mean, std = (_floats(builder, json.loads(left[key])) for key in ('mean', 'std'))
        options = _table(builder, [('offset', mean), ('offset', std)])
        unit = _table(builder, [('Uint8', _NORMALIZATION_OPTIONS, 0), ('offset', options)])
        units = _vector(builder, [unit])
    description = builder.CreateString(metadata.get('input', ''))
    name = builder.CreateString(request.input_name)
    image = _table(
        builder, [('offset', name), ('offset', description), None, ('offset', content), ('offset', units), None]
    )

    labels_name = builder.CreateString(LABELS_FILE)
    labels = _table(builder, [('offset', labels_name), None, ('Int8', _TENSOR_AXIS_LABELS, 0)])
    name, description = builder.CreateString(OUTPUT_NAME), builder.CreateString(metadata.get('output', ''))
    output = _table(
        builder, [('offset', name), ('offset', description), *[None] * 4, ('offset', _vector(builder, [labels]))]
    )

    inputs, outputs = _vector(builder, [image]), _vector(builder, [output])
    graph = _table(builder, [None, None, ('offset', inputs), ('offset', outputs)])
    graphs = _vector(builder, [graph])
    name = builder.CreateString('MobileOne')
    description = builder.CreateString(metadata.get('source', ''))
    version = builder.CreateString(metadata.get('source_sha256', ''))
    parser = builder.CreateString('1.0.0')
    root = _table(
        builder,
        [
            ('offset', name),
            ('offset', description),
            ('offset', version),
            ('offset', graphs),
            *[None] * 3,
            ('offset', parser),
        ],
    )
    builder.Finish(root, b'M001')
    return bytes(builder.Output())


def _table(builder, fields: Sequence[tuple | None]) -> int:
    """A table of ``fields`` in the schema's order: (type, value, default), ('offset', place or None), or None."""
    builder.StartObject(len(fields))
    for slot, entry in enumerate(fields):
        if entry is None or entry[1] is None:
            continue
        if entry[0] == 'offset':
            builder.PrependUOffsetTRelativeSlot(slot, entry[1], 0)
        else:
            getattr(builder, f'Prepend{entry[0]}Slot')(slot, entry[1], entry[2])
    return builder.EndObject()


def _vector(builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return builder.EndVector()


def associated_files(model: bytes, request: Request) -> bytes:
    """``model`` with a zip archive of its labels, a line each, and all its metadata behind it."""
    archive = io.BytesIO(model)
    archive.seek(0, io.SEEK_END)
    with zipfile.ZipFile(archive, 'a', zipfile.ZIP_STORED) as files:
        for name, text in (
            (LABELS_FILE, as_lines(Metadata.read(request.metadata).labels or ())),
            (METADATA_FILE, json.dumps(request.metadata, indent=2) + '\n'),
        ):
            # A fixed date: the same export is the same file.
            files.writestr(zipfile.ZipInfo(name), text)
    return archive.getvalue()
