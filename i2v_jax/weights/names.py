"""Name tables: the tensors of one PyTorch layout and the paths of our trees, as rows read in both directions.

A row says where a layer lives there and here and what kind of layer it is; the kind says how its tensors are stored.
"""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How one tensor is stored there and here: two inverse functions of an array, ValueError for another rank."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _matrix(weight: np.ndarray) -> np.ndarray:
    """[out, in], or the same stored as a 1x1 convolution [out, in, 1, 1], to [in, out]."""
    if weight.shape[2:] == (1, 1):
        weight = weight.reshape(weight.shape[:2])
    return weight.transpose(1, 0)


SAME = Layout(lambda array: array, lambda array: array)
MATRIX = Layout(_matrix, lambda kernel: kernel.transpose(1, 0))
TINY_CONVOLUTION = Layout(_matrix, lambda kernel: kernel.transpose(1, 0)[:, :, None, None])
CONVOLUTION = Layout(lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1))
FIRST_OF_ONE = Layout(lambda array: array.reshape(array.shape[1:]), lambda array: array[None])

Kind = dict[str, tuple[str, Layout]]
"""Their leaf name -> (our leaf name, layout); an empty name means that the row names the tensor itself."""

DENSE: Kind = {"weight": ("kernel", MATRIX), "bias": ("bias", SAME)}
DENSE_AS_CONV: Kind = {"weight": ("kernel", TINY_CONVOLUTION), "bias": ("bias", SAME)}
CONV: Kind = {"weight": ("kernel", CONVOLUTION), "bias": ("bias", SAME)}
NORM: Kind = {"weight": ("scale", SAME), "bias": ("bias", SAME)}
EMBEDDING: Kind = {"weight": ("embedding", SAME)}
RAW: Kind = {"": ("", SAME)}
BATCH_OF_ONE: Kind = {"": ("", FIRST_OF_ONE)}
BUFFER: Kind = {"": ("", Layout(lambda array: array, lambda array: array))}
"""A tensor that a file carries and that is no parameter: a position table, `position_ids`, `logit_scale`."""


class Row(NamedTuple):
    """One layer: its name there, its path here, its kind. `{i}` stands for the same number on both sides."""

    theirs: str
    ours: str
    kind: Kind


class Match(NamedTuple):
    """What a table says of one tensor: its name or path on the other side, its layout, whether it is only a buffer."""

    name: str
    layout: Layout
    is_buffer: bool


def under(theirs: str, ours: str, rows: Iterable[Row]) -> list[Row]:
    """Returns the rows moved below a prefix on each side; both prefixes carry their separator (`.` and `/`)."""
    return [Row(theirs + row.theirs, ours + row.ours, row.kind) for row in rows]


class Table:
    """The names of one format. `to_ours` and `to_theirs` are inverse by construction: both read the same rows."""

    def __init__(self, name: str, rows: Iterable[Row]):
        self.name = name
        self._theirs, self._ours = defaultdict(list), defaultdict(list)
        for row in rows:
            for their_leaf, (our_leaf, layout) in row.kind.items():
                theirs = f"{row.theirs}.{their_leaf}".rstrip(".")
                ours = f"{row.ours}/{our_leaf}".rstrip("/")
                is_buffer = row.kind is BUFFER
                self._theirs[_outline(theirs)].append((theirs, Match(ours, layout, is_buffer)))
                self._ours[_outline(ours)].append((ours, Match(theirs, layout, is_buffer)))

    def to_ours(self, name: str) -> Match | None:
        """Returns the path, layout and role of the tensor `name`, or None when the table does not know it."""
        return _find(self._theirs, name)

    def to_theirs(self, path: str) -> Match | None:
        """Returns the name, layout and role of the leaf at `path`, or None when the format has no place for it."""
        return _find(self._ours, path)

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether this format writes a tensor of that name in exactly that shape."""
        match = self.to_ours(name)
        return match is not None and theirs_shape(match.layout, ours_shape(match.layout, shape)) == tuple(shape)


def ours_shape(layout: Layout, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Returns the shape a tensor of `shape` there has here; None when the layout cannot take it."""
    return _through(layout.to_ours, shape)


def theirs_shape(layout: Layout, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Returns the shape an array of `shape` here has there; None when the layout cannot take it."""
    return _through(layout.to_theirs, shape)


def _through(change, shape):
    try:
        return None if shape is None else change(np.broadcast_to(np.zeros((), np.uint8), shape)).shape
    except ValueError:
        return None


def _find(rows: dict[str, list[tuple[str, Match]]], name: str) -> Match | None:
    for template, match in rows.get(_outline(name), ()):
        if found := _regex(template).fullmatch(name):
            return match._replace(name=match.name.format(**found.groupdict()))
    return None


def _outline(name: str) -> str:
    """The name with its numbers and fields made equal: few rows share an outline, and a look-up tries only those."""
    return re.sub(r"\d+|\{\w+\}", "#", name)


@functools.cache
def _regex(template: str) -> re.Pattern:
    literals_and_fields = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(
            rf"(?P<{piece}>0|[1-9]\d*)" if is_field else re.escape(piece)
            for piece, is_field in zip(literals_and_fields, itertools.cycle((False, True)))
        )
    )
