"""Weights in prompts as the web UIs have them: `(word:1.3)`, `(word)`, `[word]`, escapes, nesting, and `BREAK`.

Pure functions of text: what the weights do is in `encoders.emphasis`, what becomes of long prompts in `prompt_chunks`.
"""

import re
from typing import NamedTuple

from i2v_jax.errors import InputError, check_known

SYNTAXES = ("plain", "weighted")
MORE, LESS = 1.1, 1 / 1.1
"""Weights of `(word)` and of `[word]`."""

CLOSING = {"(": ")", "[": "]"}
_PIECE = re.compile(r"\\(?P<escaped>.?)|(?P<mark>[()\[\]:|])|(?P<text>[^\\()\[\]:|]+)", re.DOTALL)
_WEIGHT = re.compile(r":\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_NETWORK = re.compile(r"<(?P<kind>lora|lyco|hypernet):(?P<name>[^:>]*)[^>]*>")


class Segment(NamedTuple):
    """A piece of a prompt of one weight."""

    text: str
    weight: float


def check_syntax(name: str) -> None:
    """Raises InputError for a name that is not in `SYNTAXES`."""
    check_known("prompt_syntax=", name, SYNTAXES)


def parse(prompt: str) -> list[list[Segment]]:
    """Reads a weighted prompt.

    `(word:1.3)` has weight 1.3, `(word)` 1.1, `[word]` 1 / 1.1; nested ones multiply. A backslash takes the next
    character as it is. Neighbours of the same weight are one segment.

    Args:
      prompt: as a person wrote it.

    Returns:
      Segments between each `BREAK` and the next, perhaps none.

    Raises:
      InputError: parentheses that do not match, a weight that is no number, or what is read by other programs alone
        (prompt editing, networks named in the prompt); says where, in characters from 1.
    """
    if found := _NETWORK.search(prompt):
        raise _error(
            prompt,
            found.start(),
            f"{found[0]!r} names a network, which a prompt does not load here. Give it by weights.loras",
        )
    groups: list[list[Segment]] = [[]]
    opened: list[tuple[int, int, int]] = []  # position in the prompt; group and segment that come first
    position = 0
    while position < len(prompt):
        found = _PIECE.match(prompt, position)
        mark, end = found["mark"], found.end()
        weight = None
        if mark in CLOSING:
            opened.append((position, len(groups) - 1, len(groups[-1])))
        elif mark == ":" and opened:
            weight, end = _weight(prompt, position, prompt[opened[-1][0]])
        elif mark == "|" and opened and prompt[opened[-1][0]] == "[":
            raise _error(prompt, position, r"'[a|b]' alternates in some web UIs; here it does not. Write \| for a bar")
        elif mark in CLOSING.values():
            weight = _closing(prompt, position, opened)
        else:
            text = found["escaped"] if found["escaped"] is not None else found[0]
            parts = _BREAK.split(text) if found["text"] else [text]
            groups[-1].append(Segment(parts[0], 1.0))
            groups += [[Segment(part, 1.0)] for part in parts[1:]]
        if weight is not None:
            _, group, first = opened.pop()
            _multiply(groups, group, first, weight)
        position = end
    if opened:
        at = opened[-1][0]
        raise _error(prompt, at, rf"{prompt[at]!r} is not closed. Close it, or write \{prompt[at]} for the character")
    return [_joined(group) for group in groups]


def _weight(prompt: str, position: int, opening: str) -> tuple[float, int]:
    """The weight after a colon within parentheses, and where they end."""
    if opening == "[":
        raise _error(
            prompt, position, r"'[from:to:when]' is prompt editing, which is not read here. Write \: for a colon"
        )
    if found := _WEIGHT.match(prompt, position):
        return float(found["number"]), found.end()
    given = re.match(r"[^()\[\]]*", prompt[position + 1 :])[0].strip()
    raise _error(
        prompt,
        position,
        rf"{given!r} is no weight; wanted a number before the parenthesis, as in (word:1.3). Write \: for a colon",
    )


def _closing(prompt: str, position: int, opened: list[tuple[int, int, int]]) -> float:
    """The weight that a closing parenthesis gives."""
    mark = prompt[position]
    if not opened:
        raise _error(prompt, position, rf"{mark!r} closes nothing. Open it, or write \{mark} for the character")
    opening = opened[-1][0]
    if CLOSING[prompt[opening]] != mark:
        raise _error(
            prompt, position, f"{mark!r} stands where {prompt[opening]!r} of character {opening + 1} is to be closed"
        )
    return MORE if mark == ")" else LESS


def _multiply(groups: list[list[Segment]], group: int, first: int, weight: float) -> None:
    for number in range(group, len(groups)):
        start = first if number == group else 0
        inside = [Segment(text, own * weight) for text, own in groups[number][start:]]
        groups[number] = groups[number][:start] + inside


def _joined(segments: list[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].weight == segment.weight:
            joined[-1] = Segment(joined[-1].text + segment.text, segment.weight)
        else:
            joined.append(segment)
    return [segment for segment in joined if segment.text]


def _error(prompt: str, position: int, what: str) -> InputError:
    start = max(0, position - 20)
    shown = f"{'...' if start else ''}{prompt[start : position + 20]}{'...' if prompt[position + 20 :] else ''}"
    return InputError(
        f"The prompt cannot be read as weighted: at character {position + 1} of {shown!r}: {what}; or set "
        "prompt_syntax to plain."
    )
