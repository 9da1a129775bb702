"""Whether tensors are those of a network: what is missing, unexpected or misshapen, in the names of the files."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.networks import Shapes
from i2v_jax.weights.tensors import Entry
from i2v_jax.weights.translate import Imported

SHOWN = 3  # names of each sort in an error
GO_ON = "To leave them out: weights.skip_unknown=True, or --skip-unknown of `python -m convert`."

Pool = dict[str, tuple[Entry, Imported]]
"""Path -> the tensor that is there for it, and the file that holds it."""


def check_fit(component: str, expected: Shapes, pool: Pool, provider: Callable[[str], Imported]) -> dict[str, str]:
    """Checks that a pool holds what a network wants, in its shapes, and nothing else.

    Args:
        component: for messages.
        expected: what the network wants.
        pool: what the sources hold.
        provider: the source that should hold a path.

    Returns:
        Path -> the name in the file, of all that the pool holds.

    Raises:
        InputError: tensors are missing, unexpected or misshapen; names the first few of each, and what is like them.
    """
    sources = _sources(pool, map(provider, expected))
    named = {path: imported.names.get(path, path) for path, (_, imported) in pool.items()}
    missing = [name_there(provider(path), path) for path in expected if path not in pool]
    unexpected = [name for path, name in named.items() if path not in expected]
    unknown = [name for imported in sources for name in imported.unknown]
    unexpected += unknown
    misshapen = _misshapen(expected, pool, named)
    misshapen += [
        f"{name!r} has no shape that such a tensor can have" for source in sources for name in source.misshapen
    ]
    misshapen += _of_other_types(expected, pool, named)

    known = [*missing, *(named[path] for path in expected if path in named)]
    if len(unexpected) == len(unknown) and unknown and not missing and not misshapen:
        complaints = [f"unexpected {name!r}{nearest(name, known)}" for name in unknown[:SHOWN]]
        raise InputError(
            f"{_where(sources)} holds {len(unknown)} tensors that nothing here knows, beside the {component}:\n  "
            + "\n  ".join([*complaints, GO_ON])
        )
    complaints = [f"missing {name!r}{nearest(name, unexpected)}" for name in missing[:SHOWN]]
    complaints += [f"unexpected {name!r}{nearest(name, known)}" for name in unexpected[:SHOWN]]
    complaints += misshapen[:SHOWN]
    if complaints:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"
        raise InputError(
            f"{_where(sources)} does not hold this {component}: {counts} tensors of {len(expected)}.\n  "
            + "\n  ".join(complaints)
        )
    return named


def _where(sources: Iterable[Imported]) -> str:
    return " + ".join(dict.fromkeys(f"{source.parameters.source} ({source.table.name})" for source in sources))


def in_their_names(error: Exception, sources: Sequence[Imported]) -> str:
    """Returns a message that speaks of our paths, in the names of the files."""
    names = {path: name for imported in sources for path, name in imported.names.items()}
    return re.sub(r"'([^']*)'", lambda path: repr(names.get(path[1]) or name_there(sources[0], path[1])), str(error))


def name_there(imported: Imported, path: str) -> str:
    """Returns the name that a path has in a file's format; the path itself where the format has none for it."""
    match = imported.table.to_theirs(path)
    return match.name if match else path


def _sources(pool: Pool, providers: Iterable[Imported]) -> list[Imported]:
    """The files of a pool, and those that should be; each once."""
    files = [imported for _, imported in pool.values()]
    return list({id(imported): imported for imported in (*files, *providers)}.values())


def _misshapen(expected: Shapes, pool: Pool, named: Mapping[str, str]) -> list[str]:
    return [
        f"{named[path]!r} has shape {list(_shape_there(imported, path, entry.shape))}, "
        f"wanted {list(_shape_there(imported, path, expected[path].shape))}"
        for path, (entry, imported) in pool.items()
        if path in expected and entry.shape != expected[path].shape
    ]


def _of_other_types(expected: Shapes, pool: Pool, named: Mapping[str, str]) -> list[str]:
    return [
        f"{named[path]!r} holds {entry.dtype.name}; wanted floating-point numbers"
        for path, (entry, _) in pool.items()
        if path in expected and "float" not in entry.dtype.name
    ]


def _shape_there(imported: Imported, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    match = imported.table.to_theirs(path)
    return (match and match.theirs_shape(shape)) or shape
