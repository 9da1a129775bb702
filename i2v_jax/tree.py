"""Parameter trees by path: flatten, select, split into trainable and frozen, merge, count.

A path is the names from the root joined by "/"; a pattern is a regular expression that matches a whole path.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from i2v_jax.errors import InputError, nearest

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns {path: leaf} of nested dictionaries, in their order. Empty branches are dropped."""
    flat = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            flat.update({f"{name}/{path}": leaf for path, leaf in flatten(node).items()})
        else:
            flat[name] = node
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionaries of {path: leaf}; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *branches, name = path.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[name] = leaf
    return tree


def mask(tree: Tree, patterns: Iterable[str]) -> dict[str, Any]:
    """Returns a tree of the same shape that is True where a pattern matches the leaf's whole path.

    Args:
        tree: nested dictionaries, of one component or of several (`{"unet": ..., "vae": ...}`).
        patterns: regular expressions such as `r"unet/.*/first_frame/.*"`.

    Raises:
        InputError: a pattern matches nothing, or is no regular expression.
    """
    flat = flatten(tree)
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            matched = {path for path in flat if re.fullmatch(pattern, path)}
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression: {error}.") from error
        if not matched:
            raise InputError(f"The pattern {pattern!r} matches no parameter.{_near(pattern, list(flat))}")
        chosen |= matched
    return unflatten({path: path in chosen for path in flat})


def _near(pattern: str, paths: list[str]) -> str:
    """What may have been meant by a pattern that matches none of the paths."""
    if partly := next((path for path in paths if re.search(pattern, path)), None):
        return f" It matches a part of {partly!r}; patterns are of whole paths."
    names = {name for path in paths for name in path.split("/")}
    unknown = [name for name in pattern.split("/") if re.fullmatch(r"\w+", name) and name not in names]
    hints = filter(None, [nearest(pattern, paths), *(nearest(name, names) for name in unknown)])
    return next(hints, f" Paths look like {next(iter(paths), None)!r}.")


def split(tree: Tree, patterns: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (trainable, frozen): the leaves that the patterns match, and the others. `merge` puts them together.

    Raises:
        InputError: a pattern matches nothing.
    """
    chosen = flatten(mask(tree, patterns))
    flat = flatten(tree)
    return tuple(unflatten({path: flat[path] for path in flat if chosen[path] is side}) for side in (True, False))


def select(tree: Tree, patterns: Iterable[str]) -> dict[str, Any]:
    """Returns the leaves that the patterns match, as a tree.

    Raises:
        InputError: a pattern matches nothing.
    """
    return split(tree, patterns)[0]


def merge(*trees: Tree) -> dict[str, Any]:
    """Returns the union of trees that share no leaf.

    Raises:
        ValueError: two trees hold the same leaf.
    """
    flat: dict[str, Any] = {}
    for tree in trees:
        leaves = flatten(tree)
        if twice := flat.keys() & leaves.keys():
            raise ValueError(f"Two trees hold {sorted(twice)[:3]}.")
        flat.update(leaves)
    return unflatten(flat)


def count(tree: Tree) -> int:
    """Returns the number of parameters: the sum of the leaves' sizes."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())
