"""Numbers that a user writes, checked."""

from numbers import Integral
from typing import Any


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` if it is an integer (no bool, no float) from ``low`` to ``high``.

    Raises:
        ValueError: that names the value and what is allowed.
    """
    if is_integer(value) and low <= value and (high is None or value <= high):
        return int(value)
    allowed = f'an integer from {low} to {high}' if high is not None else f'an integer, {low} or more'
    raise ValueError(f'{name}={value!r}: allowed is {allowed}')


def is_integer(value: Any) -> bool:
    """True and False are numbers to Python; where a count is due they are a mistake."""
    return isinstance(value, Integral) and not isinstance(value, bool)
