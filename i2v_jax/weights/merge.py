"""Merges of models by a recipe: for each result, which expression of the models' weights each tensor is.

Tensors are computed one by one, as they are read; nothing else of the models is in memory.
"""

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from i2v_jax.errors import InputError, check_known, nearest
from i2v_jax.weights import memory, task_vectors
from i2v_jax.weights.task_vectors import Expression, Masks
from i2v_jax.weights.tensors import Entry

UNMATCHED = ("refuse", "keep", "drop")
"""What becomes of tensors that not all models have."""
SHOWN = 3  # names in a message
UNCHANGED = "as in the first model: no numbers of floating point"

Rules = tuple[tuple[str, Expression], ...]
"""Regular expressions of whole names, each with what the tensors are; the first that matches counts."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is made of which models.

    Attributes:
        models: their names; results are like the first in all that no rule says: format, dtypes, other tensors.
        results: name -> rules.
        unmatched: one of `UNMATCHED`.
        seed: of all masks.
        text: the recipe as JSON has it.
    """

    models: tuple[str, ...]
    results: Mapping[str, Rules]
    unmatched: str = "refuse"
    seed: int = 0
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        results: Mapping[str, str | Sequence[tuple[str, str]]],
        numbers: Mapping[str, float] | None = None,
        unmatched: str = "refuse",
        seed: int = 0,
    ) -> "Recipe":
        """Reads a recipe.

        Args:
            models: names, two or more.
            results: name -> an expression of all tensors, or (pattern, expression) pairs.
            numbers: name -> value.
            unmatched, seed: see `Recipe`.

        Raises:
            InputError: something cannot be read, or is of no use.
        """
        models, numbers = tuple(models), dict(numbers or {})
        check_known("unmatched=", unmatched, UNMATCHED)
        names = [*models, *numbers, *results]
        for name in names:
            if not name.isidentifier() or names.count(name) > 1:
                raise InputError(f"The name {name!r} is no plain word, or stands for two of models, numbers, results.")
        if not models or not results:
            raise InputError("A recipe wants models and results; see configs/merge/edg.py.")
        read: dict[str, Rules] = {}
        for name, rules in results.items():
            pairs = [(".*", rules)] if isinstance(rules, str) else [tuple(pair) for pair in rules]
            for pattern, _ in pairs:
                _check_pattern(pattern)
            read[name] = tuple((pattern, task_vectors.parse(text, models, numbers)) for pattern, text in pairs)
        text = dict(models=models, results=dict(results), numbers=numbers, unmatched=unmatched, seed=seed)
        return cls(models, read, unmatched, seed, text)


@dataclasses.dataclass(frozen=True)
class Merged:
    """One result.

    Attributes:
        entries: name -> tensor, unread.
        counts: how many tensors came by which rule, for people.
    """

    entries: Mapping[str, Entry]
    counts: Mapping[str, int]


def merge(
    recipe: Recipe,
    result: str,
    models: Mapping[str, Mapping[str, Entry]],
    dtype: np.dtype | None = None,
    masks: Callable[[str], Masks] | None = None,
) -> Merged:
    """Returns one result of a recipe, whose every tensor is computed when it is read.

    Args:
        recipe: to follow.
        result: which of its results.
        models: name -> what each model holds, by names that are the same in all.
        dtype: of floating-point tensors; None: as in the first model.
        masks: name of a tensor -> its masks, in place of those of the seed.

    Raises:
        InputError: a model is lacking, tensors are not in all of them or of other shapes, a pattern matches nothing.
    """
    models = {name: models[name] for name in recipe.models}
    shared, others = _matched(models, recipe.unmatched)
    masks = masks or (lambda name: task_vectors.stream(recipe.seed, result, name))
    entries: dict[str, Entry] = {}
    counts = Counter({pattern: 0 for pattern, _ in recipe.results[result]})
    for name in shared:
        held = {model: tensors[name] for model, tensors in models.items()}
        first = held[recipe.models[0]]
        rule = next((rule for rule in recipe.results[result] if re.fullmatch(rule[0], name)), None)
        if not _is_float(first.dtype):
            entries[name], counts[UNCHANGED] = first, counts[UNCHANGED] + 1
        elif rule is None:
            entries[name], counts["as in the first model: no rule"] = (
                first,
                counts["as in the first model: no rule"] + 1,
            )
        else:
            _check_shapes(name, held)
            used = {model: held[model] for model in recipe.models if model in rule[1].models}
            read = _Read(name, rule[1], used, first.dtype if dtype is None else dtype, masks)
            entries[name] = Entry(first.shape, read.dtype, read, first.file)
            counts[rule[0]] += 1
    if idle := [pattern for pattern, _ in recipe.results[result] if not counts[pattern]]:
        what = f"{', '.join(idle[:SHOWN])} of {result}: nothing is called so that no rule before has"
        where = nearest(idle[0], shared) or f" Names look like {next(iter(shared), None)!r}."
        if len(idle) == len(recipe.results[result]):
            raise InputError(f"{what}.{where}")
        warnings.warn(f"{what}.{where}", stacklevel=2)
    if others and recipe.unmatched == "keep":
        entries |= {name: next(tensors[name] for tensors in models.values() if name in tensors) for name in others}
    if others:
        counts[f"not in all models: {dict(keep='kept', drop='dropped')[recipe.unmatched]}"] = len(others)
    return Merged(entries, {what: count for what, count in counts.items() if count})


def _matched(models: Mapping[str, Mapping[str, Entry]], unmatched: str) -> tuple[list[str], list[str]]:
    """The names that all models have, and those that not all have; InputError where these are refused."""
    first, *rest = models.values()
    shared = [name for name in first if all(name in tensors for tensors in rest)]
    if not shared:
        some = ", ".join(f"{model} has {next(iter(tensors), None)!r}" for model, tensors in models.items())
        raise InputError(f"No tensor is in all of the models: {some}. Are they of one kind and family?")
    known = set(shared)
    others = list(dict.fromkeys(name for tensors in models.values() for name in tensors if name not in known))
    if others and unmatched == "refuse":
        only = {model: [name for name in tensors if name not in known] for model, tensors in models.items()}
        held = "; ".join(
            f"{len(names)} of {model}, such as {', '.join(names[:SHOWN])}" for model, names in only.items() if names
        )
        raise InputError(
            f"{len(others)} tensors are not in all models: {held}. Keep them as they are by --unmatched=keep, or "
            "leave them out by --unmatched=drop."
        )
    return shared, others


def _check_shapes(name: str, held: Mapping[str, Entry]) -> None:
    if len({entry.shape for entry in held.values()}) > 1:
        shapes = ", ".join(f"{list(entry.shape)} in {model}" for model, entry in held.items())
        raise InputError(f"{name!r} has the shapes {shapes}. Models of one family and kind can be merged.")


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}.") from error


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads a tensor of a result: computes it of the models' own, in the order in which the first of them lies."""

    name: str
    expression: Expression
    held: Mapping[str, Entry]
    dtype: np.dtype
    masks: Callable[[str], Masks]

    def __call__(self) -> np.ndarray:
        arrays = {model: entry.read() for model, entry in self.held.items()}
        first = next(iter(arrays))
        shape = arrays[first].shape
        order = sorted(range(len(shape)), key=lambda axis: -arrays[first].strides[axis])
        flat = {model: array.transpose(order).reshape(-1) for model, array in arrays.items()}
        fresh = self.held[first].file is not None and flat[first].flags.writeable
        if fresh and flat[first].dtype == self.dtype:
            result = flat[first]  # read for this alone: written over, as each stretch is done with
        else:
            result = memory.empty((flat[first].size,), self.dtype)
        del arrays

        def write(span: slice, values: np.ndarray) -> None:
            self._check(span, values, flat)
            with np.errstate(over="ignore"):
                result[span] = values

        task_vectors.evaluate(self.expression, flat, len(shape), lambda: self.masks(self.name), write)
        return result.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def _check(self, span: slice, values: np.ndarray, flat: Mapping[str, np.ndarray]) -> None:
        """Raises InputError where a result is not finite, or not as a number of its dtype."""
        largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
        if largest <= float(ml_dtypes.finfo(self.dtype).max):
            return
        for model, array in flat.items():
            if not np.isfinite(array[span].astype(np.float32)).all():
                raise InputError(
                    f"{self.held[model].file or model}: {self.name!r} holds NaN or infinite values. Fetch the file "
                    "again, or one that was trained well."
                )
        made = f"{self.expression.text!r} makes {self.name!r} {largest:.3g}"
        if np.isfinite(largest):
            raise InputError(f"{made}, which {self.dtype} cannot hold. Write another: --dtype bf16 or f32.")
        raise InputError(f"{made}, which is not finite. Give smaller numbers.")


def _is_float(dtype: np.dtype) -> bool:
    return "float" in dtype.name
