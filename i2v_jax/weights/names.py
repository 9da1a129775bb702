"""Name tables: the tensors of one PyTorch layout and the paths of our trees, as rows read in both directions.

A row says where a layer lives there and here and what kind of layer it is; the kind says how its tensors are stored.
"""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
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


WHOLE = (0, 1)


class Row(NamedTuple):
    """One layer: its name there, its path here, its kind. `{i}` stands for the same number on both sides.

    Where they store several of our layers as one tensor, joined along their first axis, each has a row with the same
    name there, and `piece` tells which of how many it is: `(0, 3)` for the query of a fused query, key and value.
    """

    theirs: str
    ours: str
    kind: Kind
    piece: tuple[int, int] = WHOLE


class Match(NamedTuple):
    """What a table says of one tensor.

    Attributes:
        name: its name or path on the other side.
        layout: how it is stored there and here.
        is_buffer: whether it is no parameter.
        piece: which of how many equal pieces of their tensor is ours.
    """

    name: str
    layout: Layout
    is_buffer: bool
    piece: tuple[int, int] = WHOLE

    def ours_shape(self, theirs: tuple[int, ...]) -> tuple[int, ...] | None:
        """Returns the shape here of (a piece of) a tensor of shape `theirs`; None where the layout cannot take it."""
        count = self.piece[1]
        if count > 1:
            if not theirs or theirs[0] % count:
                return None
            theirs = (theirs[0] // count, *theirs[1:])
        return _shape_through(self.layout.to_ours, theirs)

    def theirs_shape(self, ours: tuple[int, ...]) -> tuple[int, ...] | None:
        """Returns the shape there of the whole tensor that an array of shape `ours` is (a piece of)."""
        theirs = _shape_through(self.layout.to_theirs, ours)
        return theirs and (theirs[0] * self.piece[1], *theirs[1:]) if self.piece[1] > 1 else theirs

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns our array, a view of (a piece of) their tensor where that is possible."""
        index, count = self.piece
        if count > 1:
            length = len(tensor) // count
            tensor = tensor[index * length : (index + 1) * length]
        return self.layout.to_ours(tensor)


def under(theirs: str, ours: str, rows: Iterable[Row]) -> list[Row]:
    """Returns the rows moved below a prefix on each side; both prefixes carry their separator (`.` and `/`)."""
    return [Row(theirs + row.theirs, ours + row.ours, row.kind, row.piece) for row in rows]


def alike(**kinds: Kind) -> list[Row]:
    """Returns the rows of layers that have the same name there and here: name -> kind."""
    return [Row(name, name, kind) for name, kind in kinds.items()]


class Index(NamedTuple):
    """The rows of a table, and their tensors by the outlines of their names there and of their paths here."""

    rows: tuple[Row, ...]
    theirs: Mapping[str, list[tuple[str, Match]]]
    ours: Mapping[str, list[tuple[str, Match]]]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Index":
        """Indexes rows."""
        index = cls(tuple(rows), defaultdict(list), defaultdict(list))
        for row in index.rows:
            for their_leaf, (our_leaf, layout) in row.kind.items():
                theirs = f"{row.theirs}.{their_leaf}".rstrip(".")
                ours = f"{row.ours}/{our_leaf}".rstrip("/")
                common = layout, row.kind is BUFFER, row.piece
                index.theirs[_outline(theirs)].append((theirs, Match(ours, *common)))
                index.ours[_outline(ours)].append((ours, Match(theirs, *common)))
        return index


class Table:
    """The names of one format. `to_ours` and `to_theirs` are inverse by construction: both read the same rows."""

    def __init__(self, name: str, rows: Iterable[Row]):
        self.name, self._index = name, Index.of(rows)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows, in the order in which they are tried."""
        return self.index().rows

    def index(self) -> "Index":
        """Returns the rows, made ready for look-ups."""
        return self._index

    def of_file(self, shapes: Mapping[str, tuple[int, ...]]) -> "Table":
        """Returns the table for a file of these names and shapes: itself, unless its rows depend on the model."""
        return self

    def of_tree(self, shapes: Mapping[str, tuple[int, ...]]) -> "Table":
        """Returns the table for parameters of these paths and shapes: itself, unless its rows depend on the model."""
        return self

    def is_empty(self) -> bool:
        """Whether it reads no name at all, as one has no rows that was made for another file."""
        return type(self) is Table and not self._index.rows

    def to_ours(self, name: str) -> list[Match]:
        """Returns where the tensor `name` goes: its path, or that of each of its pieces in order; [] when unknown."""
        return _find(self.index().theirs, name)

    def to_theirs(self, path: str) -> Match | None:
        """Returns the name, layout and role of the leaf at `path`, or None when the format has no place for it."""
        return next(iter(_find(self.index().ours, path)), None)

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether this format writes a tensor of that name in exactly that shape."""
        matches = self.to_ours(name)
        ours = [match.ours_shape(shape) for match in matches]
        return bool(ours) and all(
            shape_here is not None and match.theirs_shape(shape_here) == tuple(shape)
            for match, shape_here in zip(matches, ours)
        )


class GrowingTable(Table):
    """A format whose rows are made of something that may grow while the program runs, such as a registry."""

    def __init__(self, name: str, rows: Callable[[], Iterable[Row]], state: Callable[[], Hashable]):
        """Takes what makes the rows, and what tells that they are to be made anew: that its value has changed."""
        self.name, self._make, self._state = name, rows, state
        self._made: tuple[Hashable, Index] | None = None

    def index(self) -> "Index":
        state = self._state()
        if self._made is None or self._made[0] != state:
            self._made = (state, Index.of(self._make()))
        return self._made[1]


class FamilyTable(Table):
    """A format that counts through the model's layers, so that a name means nothing without knowing the model."""

    def __init__(
        self,
        name: str,
        of_file: Callable[[Mapping[str, tuple[int, ...]]], Iterable[Row]],
        of_tree: Callable[[Mapping[str, tuple[int, ...]]], Iterable[Row]],
    ):
        """Takes what makes the rows from a file's names and shapes, and from our paths and shapes; [] for none."""
        super().__init__(name, [])
        self._rows_of_file, self._rows_of_tree = of_file, of_tree

    def of_file(self, shapes: Mapping[str, tuple[int, ...]]) -> Table:
        return Table(self.name, self._rows_of_file(shapes))

    def of_tree(self, shapes: Mapping[str, tuple[int, ...]]) -> Table:
        return Table(self.name, self._rows_of_tree(shapes))


def _shape_through(change: Callable, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return change(np.broadcast_to(np.zeros((), np.uint8), shape)).shape
    except ValueError:
        return None


def _find(rows: Mapping[str, list[tuple[str, Match]]], name: str) -> list[Match]:
    """The match of the first template that fits the name; all of them where one template has several pieces."""
    matches, first = [], None
    for template, match in rows.get(_outline(name), ()):
        if first in (None, template) and (found := _regex(template).fullmatch(name)):
            matches.append(match._replace(name=match.name.format(**found.groupdict())))
            if match.piece[1] == 1:
                break
            first = template
    return matches


@functools.lru_cache(maxsize=1 << 16)  # a file's names are asked of every table
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
