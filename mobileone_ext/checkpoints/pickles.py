"""What a pickle would have torch build, read without building it: allocations and tangles are refused beforehand.

``torch.load(weights_only=True)`` runs no code of a file, but a few calls, whose arguments the file chooses:
178 bytes are enough for an array of 8 GiB. This walks over the same instructions with the standard library's
``pickletools`` and keeps only forms and sizes.
"""

import gc
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

# Far above any network of this package: instructions, and objects once every reference is followed.
MAX_INSTRUCTIONS = 600_000  # s0 in training: 130,000
MAX_OBJECTS = 5_000_000
MAX_DEPTH = 200

# Calls of a plain checkpoint. Those of other names are torch's to refuse, or need a look at their arguments.
_PLAIN_CALLS = {
    'collections.OrderedDict',
    'collections.Counter',
    'torch.Size',
    'torch.device',
    'torch._tensor._rebuild_from_type_v2',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_parameter_with_state',
    'torch._utils._rebuild_sparse_tensor',
    'torch._utils._rebuild_sparse_csr_tensor',
    'torch.nn.parameter.Parameter',
    'torch.serialization._get_layout',
    'builtins.complex',
}
_KNOWN_MODULES = ('torch', 'collections', 'builtins', '_codecs')
_BYTES = {
    'DoubleStorage': 8,
    'LongStorage': 8,
    'ComplexFloatStorage': 8,
    'ComplexDoubleStorage': 16,
    'FloatStorage': 4,
    'IntStorage': 4,
    'HalfStorage': 2,
    'BFloat16Storage': 2,
    'ShortStorage': 2,
}


class CostlyPickle(ValueError):
    """A pickle that calls what no checkpoint of weights calls; ``name`` says what."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class _Name:
    """A function or class that the pickle names."""

    def __init__(self, path: str):
        self.path = path


class _Node(list):
    """A container, or what a call gives, with what it holds."""


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector looks at all objects again and again while many are made: it takes two thirds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collector()
def check_pickle(stream: IO[bytes], file_size: int) -> bool:
    """Walk over one pickle of a file of ``file_size`` bytes; False where torch's reader would stop before its end.

    Raises:
        CostlyPickle: for a call that allocates or computes as the file likes.
        ValueError: for one that is too long, tangled or deep, or whose storages are larger than the file.
        IndexError, KeyError, AttributeError, TypeError: for one that is damaged.
    """
    walk = _Walk(file_size)
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_INSTRUCTIONS:
            raise ValueError(f'a pickle of more than {MAX_INSTRUCTIONS:,} instructions')
        if not walk.step(instruction.name, argument):
            return False
    if isinstance(walk.result, _Node):
        _measure(walk.result, {})
    return True


class _Walk:
    """The stack of an unpickler, with forms in place of objects."""

    def __init__(self, file_size: int):
        self.stack, self.marks, self.memo = [], [], {}
        self.storages, self.file_size = {}, file_size
        self.result = None

    def step(self, name: str, argument: Any) -> bool:
        """Follow one instruction; False for one that torch's reader refuses."""
        stack = self.stack
        if name in ('BINUNICODE', 'SHORT_BINSTRING', 'BININT', 'BININT1', 'BININT2', 'BINFLOAT', 'LONG1'):
            stack.append(argument)
        elif name in ('NONE', 'NEWTRUE', 'NEWFALSE'):
            stack.append(None)
        elif name in ('BINPUT', 'LONG_BINPUT'):
            self.memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(self.memo[argument])
        elif name in ('EMPTY_TUPLE', 'EMPTY_LIST', 'EMPTY_DICT', 'EMPTY_SET'):
            stack.append(_Node())
        elif name == 'MARK':
            self.marks.append(len(stack))
        elif name in ('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'):
            items = self._pop_to_mark() if name == 'TUPLE' else self._pop(int(name[-1]))
            stack.append(_Node(items))
        elif name in ('APPEND', 'APPENDS'):
            items = self._pop_to_mark() if name == 'APPENDS' else self._pop(1)
            stack[-1].extend(items)
        elif name in ('SETITEM', 'SETITEMS'):
            items = self._pop_to_mark() if name == 'SETITEMS' else self._pop(2)
            if any(isinstance(key, (_Node, _Name)) for key in items[::2]):
                raise ValueError('a dict with keys that are neither text nor numbers')
            stack[-1].extend(items[1::2])
        elif name == 'GLOBAL':
            stack.append(_Name(_modern_name(*argument.rsplit(' ', 1))))
        elif name in ('REDUCE', 'NEWOBJ'):
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == 'BUILD':
            state = stack.pop()
            stack[-1].append(state)
        elif name == 'BINPERSID':
            stack.append(self._storage(stack.pop()))
        elif name == 'STOP':
            self.result = stack.pop()
        else:
            return name == 'PROTO'
        return True

    def _pop(self, count: int) -> list:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _call(self, function: Any, arguments: Any) -> _Node:
        if not isinstance(function, _Name):
            raise CostlyPickle('a call of what was built')
        # What torch's reader does not know it refuses itself, and names it.
        plain = function.path in _PLAIN_CALLS or not function.path.startswith(_KNOWN_MODULES)
        if function.path == 'builtins.set':
            plain = not any(isinstance(item, _Node) for value in arguments for item in value)
        elif function.path == '_codecs.encode':  # how protocol 2 writes bytes
            plain = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ('latin1', 'latin-1')
        if not plain:
            raise CostlyPickle(function.path)
        return _Node([arguments])

    def _storage(self, identity: Any) -> _Node:
        if isinstance(identity, int):
            return _Node()
        _, kind, key, _, length = identity[:5]
        size = length * _BYTES.get(kind.path.rsplit('.', 1)[-1], 1)
        self.storages[key] = max(size, self.storages.get(key, 0))
        if size > self.file_size or sum(self.storages.values()) > self.file_size:
            raise ValueError('storages larger than the file')
        return _Node()


def _modern_name(module: str, name: str) -> str:
    """The path of what was called otherwise in Python 2, whose names protocol 2 still writes."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f'{IMPORT_MAPPING.get(module, module)}.{name}'


def _measure(node: _Node, known: dict[int, tuple[int, int]], above: int = 0) -> tuple[int, int]:
    """How many objects ``node`` holds once every reference is followed, and how deep; ``above`` is where it lies.

    Raises:
        ValueError: for too many or too deep, as what holds itself is.
    """
    if id(node) not in known and above < MAX_DEPTH:
        inner = [_measure(item, known, above + 1) for item in node if isinstance(item, _Node)]
        known[id(node)] = (
            len(node) + sum(size for size, _ in inner),
            1 + max((depth for _, depth in inner), default=0),
        )
    size, depth = known.get(id(node), (0, 1))
    if size > MAX_OBJECTS or above + depth > MAX_DEPTH:
        raise ValueError(f'more than {MAX_OBJECTS:,} objects, or {MAX_DEPTH} deep, once references are followed')
    return size, depth
