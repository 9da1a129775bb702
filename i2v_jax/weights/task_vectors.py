"""A small language of task vectors (Ilharco et al. 2023): expressions over models' weights, computed block by block.

`tuned + 0.25 * drop(tuned - pre, 0.7)`: names stand for models or numbers; + - * / and `FUNCTIONS` are known. Masks are
drawn by seed, result, tensor and place in the expression, so that they can be drawn again. docs/merging.md.
"""

import ast
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from i2v_jax.errors import InputError, nearest

BLOCK = 1 << 15  # elements computed together: such arrays stay in the cache, and take no new pages
DRAWS = 1 << 16  # a mask's element is one of so many equally likely numbers

Value = np.ndarray | float
Masks = Callable[[int, int, float], np.ndarray]
"""(number of the drop, elements, kept share) -> the next elements of its mask, as booleans."""


class Block(NamedTuple):
    """What an expression is computed of: a stretch of one tensor.

    Attributes:
        models: name -> its elements, float32 or float64 [n].
        rank: of the tensor.
        masks: draws the next n elements of a mask.
        thresholds: number of a trim -> the least magnitude that it keeps in this tensor.
    """

    models: Mapping[str, np.ndarray]
    rank: int
    masks: Masks
    thresholds: Mapping[int, float]


class Node(NamedTuple):
    """A part of an expression.

    Attributes:
        compute: its value in a block.
        number: its value where it is a plain number, None where it is of tensors.
    """

    compute: Callable[[Block], Value]
    number: float | None = None


class Expression(NamedTuple):
    """An expression, ready to be computed.

    Attributes:
        text: as it was written.
        models: the names of the models in it.
        value: the whole of it.
        trims: what each of its trims trims and which share of that it keeps, inner ones first.
    """

    text: str
    models: frozenset[str]
    value: Node
    trims: tuple[tuple[Node, float], ...]


def drop(x: np.ndarray, mask: np.ndarray, rate: float) -> np.ndarray:
    """Keeps the elements where `mask` is and makes up for the others: x mask / (1 - rate) (DARE, Yu et al. 2024)."""
    return x * mask.astype(x.dtype) * np.asarray(1 / (1 - rate), x.dtype)


def elect(*changes: np.ndarray) -> np.ndarray:
    """Returns the mean of those changes whose sign is that of their sum, zeros aside (TIES, Yadav et al. 2023)."""
    stacked = np.stack(changes)
    sign = np.where(stacked.sum(0) >= 0, 1, -1)
    agrees = stacked * sign > 0
    return (stacked * agrees).sum(0) / np.maximum(agrees.sum(0), 1).astype(stacked.dtype)


def mean(*values: np.ndarray) -> np.ndarray:
    """Returns the mean."""
    return sum(values[1:], values[0]) * np.asarray(1 / len(values), values[0].dtype)


class Function(NamedTuple):
    """What a function takes: so many tensors (None: one or more), then so many numbers; and what people read of it."""

    tensors: int | None
    numbers: int
    about: str


FUNCTIONS = {
    "extrapolate": Function(2, 1, "extrapolate(a, b, s): a + s (a - b)"),
    "drop": Function(1, 1, "drop(x, rate): a share of the elements, drawn, is 0, the others make up for them (DARE)"),
    "drop_matrices": Function(1, 1, "drop_matrices(x, rate): as drop, but vectors (biases, norms) stay whole (EDG)"),
    "trim": Function(
        1, 1, "trim(x, keep): the share of the largest elements of each tensor stays, others are 0 (TIES)"
    ),
    "elect": Function(None, 0, "elect(x, y, ...): the mean of those that agree with the sign of their sum (TIES)"),
    "mean": Function(None, 0, "mean(x, y, ...): the mean"),
}


def parse(text: str, models: Sequence[str], numbers: Mapping[str, float]) -> Expression:
    """Reads an expression.

    Args:
        text: of the expression.
        models: names that stand for models.
        numbers: names that stand for numbers.

    Raises:
        InputError: it cannot be read, has unknown names, or numbers out of range.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{text!r} is no expression: {error}. Wanted one such as 'a + 0.5 * (b - c)'.") from error
    reading = _Reading(text, models, numbers)
    value = reading.node(tree)
    if value.number is not None:
        raise InputError(f"{text!r} is a number, and weights are wanted. Models: {', '.join(models)}.")
    return Expression(text, frozenset(reading.used), value, tuple(reading.trims))


class _Reading:
    """An expression as it is read: what was found in it so far."""

    def __init__(self, text: str, models: Sequence[str], numbers: Mapping[str, float]):
        self.text, self.models, self.numbers = text, tuple(models), numbers
        self.used: set[str] = set()
        self.trims: list[tuple[Node, float]] = []
        self.drops = 0

    def node(self, tree: ast.AST) -> Node:
        match tree:
            case ast.Constant(value=int() | float()) if not isinstance(tree.value, bool):
                return self.constant(float(tree.value))
            case ast.Name(id=name):
                return self.name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.scaled(self.constant(-1.0), self.node(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.node(operand)
            case ast.BinOp(left=left, op=operator, right=right):
                return self.operation(operator, self.node(left), self.node(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.call(name, arguments)
        raise self.error(f"{ast.unparse(tree)!r} is not of this language: names, numbers, + - * / and functions are")

    def name(self, name: str) -> Node:
        if name in self.numbers:
            return self.constant(float(self.numbers[name]))
        if name not in self.models:
            known = (*self.models, *self.numbers)
            raise self.error(f"no model or number is called {name!r}; there are {', '.join(known)}", name, known)
        self.used.add(name)
        return Node(lambda block: block.models[name])

    def constant(self, value: float) -> Node:
        if not math.isfinite(value):
            raise self.error(f"the number {value} is not finite")
        return Node(lambda block: value, value)

    def operation(self, operator: ast.operator, left: Node, right: Node) -> Node:
        match operator:
            case ast.Mult():
                return self.scaled(left, right)
            case ast.Div():
                if right.number is None:
                    raise self.error("weights are divided by numbers alone")
                if right.number == 0:
                    raise self.error("there is a division by 0")
                return self.scaled(self.constant(1 / right.number), left)
            case ast.Add() | ast.Sub():
                if (left.number is None) != (right.number is None):
                    raise self.error("a number is added to weights; numbers scale them")
                sign = 1.0 if isinstance(operator, ast.Add) else -1.0
                if left.number is not None:
                    return self.constant(left.number + sign * right.number)
                if sign > 0:
                    return Node(lambda block: left.compute(block) + right.compute(block))
                return Node(lambda block: left.compute(block) - right.compute(block))
        raise self.error("of operators there are + - * /")

    def scaled(self, left: Node, right: Node) -> Node:
        if left.number is None and right.number is None:
            raise self.error("weights are multiplied by numbers alone")
        if left.number is not None and right.number is not None:
            return self.constant(left.number * right.number)
        factor, value = (left.number, right) if left.number is not None else (right.number, left)
        if factor == 1:
            return value
        return Node(lambda block: value.compute(block) * factor)

    def call(self, name: str, arguments: Sequence[ast.expr]) -> Node:
        if name not in FUNCTIONS:
            raise self.error(f"no function is called {name!r}; there are {', '.join(FUNCTIONS)}", name, FUNCTIONS)
        function = FUNCTIONS[name]
        count = len(arguments) - function.numbers
        if count < 1 or function.tensors not in (None, count):
            raise self.error(f"{name} has {len(arguments)} arguments; wanted {function.about}")
        nodes = [self.node(argument) for argument in arguments]
        tensors, numbers = nodes[:count], [node.number for node in nodes[count:]]
        if any(node.number is not None for node in tensors) or None in numbers:
            raise self.error(f"wanted {function.about}; numbers and weights are mixed up in {name}")
        return getattr(self, name)(*tensors, *numbers)

    def extrapolate(self, a: Node, b: Node, strength: float) -> Node:
        return Node(lambda block: _extrapolated(a.compute(block), b.compute(block), strength))

    def drop(self, x: Node, rate: float, with_vectors: bool = True) -> Node:
        if not 0 <= rate < 1:
            raise self.error(f"drop's rate is {rate}; wanted 0 or more, and less than 1")
        number, self.drops = self.drops, self.drops + 1

        def compute(block: Block) -> Value:
            value = x.compute(block)
            if block.rank == 1 and not with_vectors:
                return value
            return drop(value, block.masks(number, len(value), 1 - rate), rate)

        return Node(compute)

    def drop_matrices(self, x: Node, rate: float) -> Node:
        return self.drop(x, rate, with_vectors=False)

    def trim(self, x: Node, keep: float) -> Node:
        if not 0 < keep <= 1:
            raise self.error(f"trim keeps a share of {keep}; wanted more than 0, up to 1")
        number = len(self.trims)
        self.trims.append((x, keep))

        def compute(block: Block) -> Value:
            value = x.compute(block)
            return value * (np.abs(value) >= block.thresholds[number])

        return Node(compute)

    def elect(self, *changes: Node) -> Node:
        return Node(lambda block: elect(*(change.compute(block) for change in changes)))

    def mean(self, *values: Node) -> Node:
        return Node(lambda block: mean(*(value.compute(block) for value in values)))

    def error(self, what: str, name: str = "", known: Sequence[str] | Mapping = ()) -> InputError:
        return InputError(f"{self.text!r}: {what}.{nearest(name, known) if name else ''}")


def _extrapolated(a: np.ndarray, b: np.ndarray, strength: float) -> np.ndarray:
    return a + (a - b) * strength


def stream(*names: object) -> Masks:
    """Returns the masks of one tensor: those of the same names are the same, those of others independent.

    Args:
        names: seed, result, tensor.
    """
    streams: dict[int, np.random.SFC64] = {}

    def draw(number: int, count: int, kept: float) -> np.ndarray:
        if number not in streams:
            digest = hashlib.blake2b("/".join(map(str, (*names, number))).encode(), digest_size=16).digest()
            streams[number] = np.random.SFC64(int.from_bytes(digest, "little"))
        draws = streams[number].random_raw(-(-count // 4)).view(np.uint16)[:count]
        return draws < round(kept * DRAWS)

    return draw


def evaluate(
    expression: Expression,
    models: Mapping[str, np.ndarray],
    rank: int,
    masks: Callable[[], Masks],
    write: Callable[[slice, np.ndarray], None],
) -> None:
    """Computes an expression of one tensor, block by block.

    Args:
        expression: to compute.
        models: name -> the tensor's elements there [n], in the same order; those of the expression at least.
        rank: of the tensor; of a number alone, 0.
        masks: begins the tensor's masks anew.
        write: called with each stretch and its values, after which the models' elements there are not looked at again.
    """
    thresholds: dict[int, float] = {}
    for number, (node, keep) in enumerate(expression.trims):
        thresholds[number] = _threshold(node, keep, models, rank, masks(), thresholds)
    draw = masks()
    with np.errstate(over="ignore", invalid="ignore"):  # `write` looks at what came of it
        for span, block in _blocks(expression.models, models, rank, draw, thresholds):
            write(span, expression.value.compute(block))


def _blocks(names, models, rank, masks, thresholds):
    """The stretches of a tensor, each with what an expression is computed of there."""
    held = {name: models[name] for name in names}
    size = len(next(iter(held.values())))
    kind = np.result_type(*(np.float64 if array.dtype == np.float64 else np.float32 for array in held.values()))
    for start in range(0, size, BLOCK):
        span = slice(start, min(start + BLOCK, size))
        parts = {name: array[span].astype(kind, copy=False) for name, array in held.items()}
        yield span, Block(parts, rank, masks, thresholds)


def _threshold(node: Node, keep: float, models, rank: int, masks: Masks, thresholds: Mapping[int, float]) -> float:
    """The least magnitude of the share `keep` of a value's largest elements."""
    found = [np.abs(node.compute(block)) for _, block in _blocks(models, models, rank, masks, thresholds)]
    magnitudes = np.concatenate(found) if found else np.zeros(0, np.float32)
    del found
    count = int(keep * len(magnitudes))
    if not count:
        return math.inf
    magnitudes.partition(len(magnitudes) - count)
    return float(magnitudes[len(magnitudes) - count])
