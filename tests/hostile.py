"""Files that no tool may read: pickles that run code or eat the machine. One set for all tests."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import torch


class Bomb:
    """Pickles to a call that makes the folder ``path``."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _text(text: str) -> bytes:
    return b'X' + struct.pack('<I', len(text)) + text.encode()


def _call(name: str, *arguments: bytes) -> bytes:
    module, function = name.rsplit('.', 1)
    return f'c{module}\n{function}\n'.encode() + b'(' + b''.join(arguments) + b't' + b'R'


def _long(value: int) -> bytes:
    data = value.to_bytes(9, 'little')
    return b'\x8a' + bytes([len(data)]) + data


def _nested_codec(depth: int) -> bytes:
    return b'c_codecs\nencode\n(' * depth + _text('a' * 100) + (_text('rot13') + b'tR') * depth


def _laughs(depth: int, width: int) -> bytes:
    """Tuples of one tuple, ``width`` times, ``depth`` deep: little to write, width ** depth to walk over."""
    inner = _text('ha') + b'q\x00'
    for _ in range(depth):
        inner = inner + b'(' + b'h\x00' * width + b't' + b'q\x00'
    return inner


def _storage(length: int) -> bytes:
    return b'(' + _text('storage') + b'ctorch\nFloatStorage\n' + _text('0') + _text('cpu') + _long(length) + b't' + b'Q'


# What a hostile pickle holds between its first byte and its last.
PICKLES = {
    'an array of 8 GiB': _call('builtins.bytearray', _long(8 << 30)),
    'an array by its old name': _call('__builtin__.bytearray', _long(8 << 30)),
    'a tensor of 8 GiB': _call('torch.Tensor', _long(2 << 30)),
    'a new tensor of 8 GiB': b'ctorch\nTensor\n' + _long(2 << 30) + b'\x85\x81',
    'nested codecs': _nested_codec(60_000),
    'a compressing codec': _call('_codecs.encode', _text('a'), _text('zlib')),
    'laughing tuples': _laughs(30, 30),
    'a laughing key': _laughs(30, 30) + b'}h\x00K\x01s',
    'a laughing set': _laughs(30, 30) + _call('builtins.set', b'](h\x00e'),
    'a list of itself': b']q\x00h\x00a',
    'millions of lists': b'](' + b']' * 1_000_000 + b'e',
    'a deep list': b']' * 100_000 + b'a' * 99_999,
    'a storage of 4 TiB': _storage(1 << 40),
    'a call of a result': _call('collections.OrderedDict') + b')R',
}


def legacy(content: bytes) -> bytes:
    """``content`` as the third thing in a file of torch before 1.6."""
    magic, version = (pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001))
    system = pickle.dumps(dict(protocol_version=1001, little_endian=True, type_sizes={}), 2)
    return magic + version + system + b'\x80\x02' + content + b'.' + pickle.dumps([], 2)


def zipped(content: bytes) -> bytes:
    """``content`` as the pickle of a torch zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02' + content + b'.')
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')
        archive.writestr('archive/data/0', bytes(4))
    return buffer.getvalue()


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02}.')
        archive.writestr('archive/data/0', bytes(1 << 26))
    return buffer.getvalue()


def _two_pickles() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02}.')
        archive.writestr('other/data.pkl', b'\x80\x02}.')
    return buffer.getvalue()


def _header(claim: int, content: bytes) -> bytes:
    return struct.pack('<Q', claim) + content


FILES = {
    **{f'{name}, legacy': (legacy, content) for name, content in PICKLES.items()},
    **{f'{name}, zip': (zipped, content) for name, content in PICKLES.items()},
    'a bare array of 8 GiB': (lambda content: b'\x80\x02' + content + b'.', PICKLES['an array of 8 GiB']),
    'a zip bomb': (lambda _: _zip_bomb(), b''),
    'two pickles': (lambda _: _two_pickles(), b''),
    'a safetensors header of 4 EiB': (lambda _: _header(1 << 62, b'{}'), b''),
    'a safetensors header of 40 MB': (lambda _: _header(40 << 20, b'{' + b' ' * (40 << 20)), b''),
    'a safetensors header of tensors': (
        lambda _: _header(17 << 20, b'{"a":' + b'[' * (17 << 20)),
        b'',
    ),
}

BAD_CHECKPOINTS = ('pickled call', 'empty', 'truncated')


def write_bad_checkpoint(folder: Path, kind: str, good: Path) -> 'tuple[Path, str]':
    """Write a file that no tool may read to ``folder``; its path, and a word of the error that is due.

    The pickled call would leave a folder ``trace`` in ``folder``.
    """
    path = folder / 'bad.pth'
    if kind == 'pickled call':
        torch.save(dict(state_dict={}, call=Bomb(folder / 'trace')), path)
        return path, 'refused'
    content = good.read_bytes()
    path.write_bytes(b'' if kind == 'empty' else content[: len(content) // 2])
    return path, 'empty' if kind == 'empty' else 'damaged'
