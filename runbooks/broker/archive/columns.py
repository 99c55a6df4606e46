"""Columns: a value for each of very many numbered things, in arrays instead of objects."""

from array import array
from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Column(Generic[T]):
    """Holds values by n of which few differ, each as a small number (`code` as in `array`)."""

    def __init__(self, code: str, default: T) -> None:
        self.codes = array(code, [0])
        self._values = [default]
        self._code_of = {default: 0}

    def __getitem__(self, n: int) -> T:
        if n >= len(self.codes):
            return self._values[0]
        return self._values[self.codes[n]]

    def __setitem__(self, n: int, value: T) -> None:
        code = self._code_of.setdefault(value, len(self._values))
        if code == len(self._values):
            self._values.append(value)
        if code or n < len(self.codes):
            put(self.codes, n, code)

    def distinct(self) -> Mapping[T, int]:
        """Return the distinct values, each with its code."""
        return self._code_of


def put(column: "array[int]", n: int, value: int) -> None:
    """Set a number; skipped numbers are 0."""
    if n == len(column):
        column.append(value)
        return
    if n > len(column):
        column.extend([0] * (n + 1 - len(column)))
    column[n] = value
