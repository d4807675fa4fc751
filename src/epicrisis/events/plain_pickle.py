"""Pickles of plain data, read without running anything that is in them.

A pickle is a program: loading one from a stranger can run any code. The unpickler here knows lists, dicts,
tuples, sets, strings, bytes, numbers, booleans and None, and rebuilds numpy scalars and one-dimensional
number arrays as Python numbers and lists by its own code. Whatever else a pickle names is refused by name.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from epicrisis.settings.problems import refuse

_NUMBER_TYPE = re.compile(r"[<>|=]?[biuf][1248]")
_FIX = "save plain lists, dicts, strings and numbers only"


def load_plain(path: Path) -> Any:
    """The plain data in a pickle; numpy arrays come as lists, numpy scalars as numbers.

    Raises InputError naming the first class or function that is not allowed, or for a file that is no pickle.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    except _NotPlain as error:
        raise refuse(str(path), f"the pickle asks for {error}, which is not plain data", _FIX) from error
    except Exception as error:  # a broken pickle can raise nearly anything, from EOFError to IndexError
        what = f"cannot be read as a pickle ({type(error).__name__})"
        raise refuse(str(path), what, "write or copy the file again") from error


class _NotPlain(Exception):
    """The pickle wants something other than plain data; the message names it."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = re.sub(r"^numpy\.core\b", "numpy._core", module).replace("__builtin__", "builtins")
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _NotPlain(f"{module}.{name}")
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise _NotPlain("a persistent object")


class _NumberType:
    """Stands in for numpy.dtype: numbers only, and its state can set the byte order and nothing else."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not isinstance(code, str) or not _NUMBER_TYPE.fullmatch(code):
            raise _NotPlain("a numpy array of something other than numbers")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise _NotPlain("an unknown byte order")
        self.code = order + self.code.lstrip("<>|=")

    def numbers(self, raw: bytes | bytearray) -> list:
        return np.frombuffer(raw, dtype=np.dtype(self.code)).tolist()


class _NumberArray(list):
    """Stands in for numpy.ndarray: a list that fills itself from the array's bytes."""

    def __setstate__(self, state: tuple) -> None:
        _version, shape, number_type, _fortran, raw = state
        if not isinstance(number_type, _NumberType) or len(shape) != 1:
            raise _NotPlain("a numpy array that is not a row of numbers")
        self[:] = number_type.numbers(raw)


def _reconstruct(kind: type, shape: tuple, code: bytes) -> _NumberArray:
    if kind is not _NumberArray:
        raise _NotPlain("a subclass of numpy.ndarray")
    return _NumberArray()


def _from_buffer(raw: bytes | bytearray, number_type: _NumberType, shape: tuple, order: str) -> list:
    if len(shape) != 1:
        raise _NotPlain("a numpy array that is not a row of numbers")
    return number_type.numbers(raw)


def _scalar(number_type: _NumberType, raw: bytes) -> int | float | bool:
    return number_type.numbers(raw)[0]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Protocol 2 writes bytes as text; any codec but latin1 would be more than that."""
    if encoding != "latin1":
        raise _NotPlain(f"the codec {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 writes bytes of length zero; bytes(n) would hand over as much memory as asked for."""
    return b""


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _NumberType,
    ("numpy", "ndarray"): _NumberArray,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1_bytes,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytes"): _no_bytes,
}
