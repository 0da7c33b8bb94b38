"""What hooks remember of a run, in its checkpoints.

A hook's memory is what training has changed of its attributes, as far as these are plain data: counters, scores,
lists, tensors. A resumed run gives it back when its hooks have begun (``before_train``), and with it which parameters
hooks have frozen or let go, and gradients that no step has used yet. A hook that wants it otherwise has
``state_dict()`` and ``load_state_dict(state)``.
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, all_reduce_params, get_rank
from mmengine.hooks import CheckpointHook, Hook, IterTimerHook, ProfilerHook
from torch import nn

from ..checkpoints.training import digest
from .progress import ProgressHook

# Of these the message hub has what a run needs; the rest is of the process, as seconds since it began.
_REMEMBER_NOTHING = (CheckpointHook, IterTimerHook, ProfilerHook, ProgressHook)
_TRAINED, _GRADIENTS = 'trained parameters', 'gradients'  # in place of a hook's name
_OWN = 'state_dict'  # in place of attributes

_AS_THEY_ARE = (type(None), bool, int, float, str)
_FACTORIES = {factory.__name__: factory for factory in (int, float, list, dict, set)}


class Kind(NamedTuple):
    """How to make plain data of a type, and the type of it again."""

    cls: type
    pack: Callable
    unpack: Callable


_KINDS = {
    'array': Kind(np.ndarray, lambda value: torch.from_numpy(value.copy()), torch.Tensor.numpy),
    'set': Kind(set, list, set),
    'deque': Kind(deque, lambda value: [list(value), value.maxlen], lambda packed: deque(*packed)),
    'Counter': Kind(Counter, dict, Counter),
    'OrderedDict': Kind(OrderedDict, dict, OrderedDict),
    'defaultdict': Kind(
        defaultdict,
        lambda value: [getattr(value.default_factory, '__name__', None), dict(value)],
        lambda packed: defaultdict(_FACTORIES.get(packed[0]), packed[1]),
    ),
}


def pack(value: Any) -> Any:
    """A copy of ``value`` as containers, numbers, text and tensors alone.

    Raises:
        TypeError: for what has no such form.
    """
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is torch.Tensor and not value.requires_grad:
        copied = value.cpu().clone()
        return copied if value.device.type == 'cpu' else {'on device': copied}
    if type(value) in (list, tuple):
        return type(value)(map(pack, value))
    if type(value) is dict:
        return {'dict': [[pack(key), pack(item)] for key, item in value.items()]}
    for name, kind in _KINDS.items():
        if type(value) is kind.cls:
            return {name: pack(kind.pack(value))}
    raise TypeError(f'a {type(value).__name__} is no plain data')


def unpack(value: Any) -> Any:
    """What :func:`pack` made ``value`` of."""
    if isinstance(value, list | tuple):
        return type(value)(map(unpack, value))
    if not isinstance(value, dict):
        return value
    ((name, packed),) = value.items()
    if name == 'dict':
        return {unpack(key): unpack(item) for key, item in packed}
    packed = unpack(packed)
    return packed.to(get_device()) if name == 'on device' else _KINDS[name].unpack(packed)


def same(one: Any, other: Any) -> bool:
    """Whether packed values are equal, tensors bit for bit, NaN like NaN."""
    return type(one) is type(other) and digest(one) == digest(other)


def by_name(hooks: Iterable[Hook]) -> Iterator[tuple[str, Hook]]:
    """Hooks by their types; from the second of a type on with a number."""
    seen = Counter()
    for hook in hooks:
        name = type(hook).__name__
        seen[name] += 1
        yield (name if seen[name] == 1 else f'{name} {seen[name]}'), hook


def attributes(hook: Hook) -> dict:
    """The attributes of ``hook`` that are plain data, packed."""
    packed = {}
    for name, value in vars(hook).items():
        with suppress(TypeError):
            packed[name] = pack(value)
    return packed


class Memory:
    """The memory of ``hooks`` that train ``model``, from here on.

    Raises:
        TypeError: for a hook whose ``state_dict`` is no plain data.
    """

    def __init__(self, hooks: Iterable[Hook], model: nn.Module):
        self.hooks = {name: hook for name, hook in by_name(hooks) if not isinstance(hook, _REMEMBER_NOTHING)}
        self.model = model
        self._began, self._gathered = self._all(), []
        self._save_again: Callable | None = None

    def _all(self) -> dict[str, dict]:
        states = {
            name: {_OWN: pack(hook.state_dict())} if hasattr(hook, 'load_state_dict') else attributes(hook)
            for name, hook in self.hooks.items()
        }
        parameters = dict(self.model.named_parameters())
        states[_TRAINED] = {name: parameter.requires_grad for name, parameter in parameters.items()}
        states[_GRADIENTS] = {name: pack(p.grad) for name, p in parameters.items() if p.grad is not None}
        return states

    def changed(self) -> dict[str, dict]:
        """What of it is not as it was in the beginning, packed."""
        changed = {}
        for name, state in self._all().items():
            began = self._began[name]
            new = {key: value for key, value in state.items() if key not in began or not same(value, began[key])}
            if new:
                changed[name] = new
        return changed

    def gather(self) -> None:
        """Take down the memory of all processes, for the checkpoint that is to be written; each of them calls this.

        Gradients are their average from here on, which they would be with the next step.
        """
        all_reduce_params([p.grad for p in self.model.parameters() if p.grad is not None], op='mean')
        self._gathered = _each_once(all_gather_object(self.changed()))

    def put_into(self, checkpoint: dict) -> None:
        states = self._gathered or [self.changed()]  # a hook of one's own saves in the first process alone
        if any(states):
            checkpoint['hooks'] = states

    def was_saved(self, save_again: Callable[[], None]) -> None:
        """To be called in each process when what was gathered has been written."""
        self._save_again = save_again

    def catch_up(self) -> None:
        """Save again if hooks whose turn came after the checkpoint's have gone on since."""
        if self._save_again is None:
            return
        if not same(_each_once(all_gather_object(self.changed())), self._gathered):
            self._save_again()
        self._save_again, self._gathered = None, []

    def give_back(self, states: list[dict[str, dict]], where: str = '', edited: bool = False) -> list[str]:
        """Let the hooks of this process go on with the memory in ``states``, one for each process or for all.

        Args:
            where: what messages begin with.
            edited: whether the types of numbers are to be held against those that hooks begin with.

        Returns:
            What went on, by name; of hooks that this run has.

        Raises:
            ValueError: for what no hook has left so; others for what is no memory.
        """
        state, went_on = states[get_rank() if get_rank() < len(states) else 0], []
        for name, values in state.items():
            if name not in self._began:
                continue
            began, hook = self._began[name], self.hooks.get(name)
            for key, value in values.items():
                are_numbers = {isinstance(one, int | float) for one in (value, began.get(key, value))}
                is_method = key != _OWN and callable(getattr(type(hook), key, None))
                if is_method or (edited and len(are_numbers) > 1):
                    raise ValueError(f'{where}hooks.{name}.{key} is {value!r}, and begins as {began.get(key)!r}')
            values = {key: unpack(value) for key, value in values.items()}
            if name == _TRAINED:
                for key, trained in values.items():
                    self.model.get_parameter(key).requires_grad_(trained)
            elif name == _GRADIENTS:
                for key, gradient in values.items():
                    parameter = self.model.get_parameter(key)
                    parameter.grad = gradient.to(parameter.device)
            elif _OWN in values:
                hook.load_state_dict(values[_OWN])
            else:
                vars(hook).update(values)
            went_on.append(f'{name} ({", ".join(values)})' if len(values) < 9 else name)
        return went_on


def _each_once(states: list) -> list:
    return states if any(not same(state, states[0]) for state in states) else states[:1]
