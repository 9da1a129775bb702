"""Which kind a file is of: what it holds that is read here, and what is known of what is not."""

import functools
import re
from collections.abc import Iterable, Mapping

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTER_PATH
from i2v_jax.models.adapters.miva import NAME, PATH
from i2v_jax.weights.kinds.table import ALIKE, READ, SLOTS, UNREAD, Kind

Names = Iterable[str]
OF_LORA = (
    ("dora", "dora"),
    ("hada", "loha"),
    ("lokr", "lokr"),
    ("ia3", "ia3"),
    ("on_input", "ia3"),
    ("w_norm", "norm"),
    ("b_norm", "norm"),
    ("diff", "full"),
    ("sparse", "full"),
)
"""How the leaves below `lora/` begin -> the part; all others are LoRA's own."""


def unread_kind(names: Names, kinds: Iterable[Kind] = UNREAD) -> tuple[Kind, str] | None:
    """Returns the kind that makes a file one that is not read here, and the name that tells it; None for others.

    Args:
      names: the tensors' names in the file.
      kinds: to try.
    """
    text = "\n".join(names)
    for kind in kinds:
        found = [_pattern(pattern).search(text) for pattern in kind.has]
        if all(found) and not any(_pattern(pattern).search(text) for pattern in kind.lacks):
            return kind, found[-1][0]
    return None


def refuse_unread(names: Names, source: str) -> None:
    """Raises InputError for a file of a known kind that is not read here: what it is, and what to use instead.

    Args:
      names: the tensors' names in the file.
      source: the file, for the message.
    """
    if found := unread_kind(names):
        raise InputError(why_unread(source, *found))


def likeness(names: Names) -> str:
    """Returns what a file of no known format is like, as the end of a message; "" where it is like nothing."""
    found = unread_kind(names, ALIKE)
    return f" It looks like {found[0].title}. {found[0].instead}" if found else ""


def why_unread(source: str, kind: Kind, name: str) -> str:
    """Returns what to say of a file that is not read."""
    return f"{source}: {name!r} belongs to {kind.title}, which {kind.why}. {kind.instead}"


def parts_held(found: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns the parts that a file holds, by the keys of `table.READ` (or an adapter's name), each once.

    Args:
      found: component -> paths of its tensors in our trees.
    """
    parts: dict[str, None] = {}
    for component, paths in found.items():
        for path in paths:
            if not path.endswith("/lora/alpha"):  # which every method has
                parts[_part(component, path)] = None
    return [part for part in parts if part != "lora" or "dora" not in parts]


def titled(parts: Iterable[str]) -> str:
    """Returns what a file of these parts is, as a sentence has it."""
    titles = [READ[part].title if part in READ else f"weights of the adapter {part!r}" for part in parts]
    return " and ".join(filter(None, (", ".join(titles[:-1]), *titles[-1:])))


def wrong_slot(slot: str, source: str, parts: Iterable[str]) -> str | None:
    """Returns what to say of a file that is given for a slot and holds nothing for it; None where it does.

    Args:
      slot: a key of `table.SLOTS`.
      source: the file.
      parts: what it holds, of `parts_held`.
    """
    parts = [part for part in parts if part in READ]
    wanted = "unet" if slot == "base" else slot
    if any(wanted in READ[part].slots for part in parts):
        return None
    known = [part for part in parts if READ[part].slots] or parts
    uses = " ".join(dict.fromkeys(READ[part].use.format(source=source) for part in known[:2]))
    title, example = SLOTS[slot]
    where = "--lora" if slot == "lora" else f"weights.{slot}"
    return f"{where}: {source} holds no {title}, such as {example} does. It is {titled(known)}. {uses}"


def _part(component: str, path: str) -> str:
    if "/lora/" in path:
        leaf = path.rpartition("/")[2]
        method = next((part for start, part in OF_LORA if leaf.startswith(start)), "lora")
        return "motion_lora" if "/motion/" in path else method
    if component != "unet":
        return component
    if PATH in path:
        return NAME
    if match := ADAPTER_PATH.fullmatch(path):
        return match["name"]
    return "motion" if "/motion/" in path else "unet"


@functools.cache
def _pattern(pattern: str) -> re.Pattern:
    return re.compile(rf"^(?:{pattern})$", re.MULTILINE)
