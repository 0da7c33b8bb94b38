"""Arguments checked: each function raises a ValueError that names the value and what is allowed."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` if it is an integer (no bool, no float) from ``low`` to ``high``."""
    if is_integer(value) and low <= value and (high is None or value <= high):
        return int(value)
    allowed = f'an integer from {low} to {high}' if high is not None else f'an integer, {low} or more'
    raise ValueError(f'{name}={value!r}: allowed is {allowed}')


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f'{name}={value!r}: allowed are True and False')


def check_callable(name: str, value: Any) -> Callable:
    if not callable(value):
        raise ValueError(f'{name}={value!r}: allowed is what can be called')
    return value


def is_integer(value: Any) -> bool:
    """True and False are numbers to Python; where a count is due they are a mistake."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
