"""Weighted prompts of any length to rows of tokens: chunks of 75 between start and end, as the web UIs have them.

A chunk ends at `BREAK`, where it is full, or at a comma a little before that; a textual inversion is never cut.
"""

import warnings

import numpy as np
from jaxtyping import Float, Int32

from i2v_jax.encoders.prompt_syntax import parse
from i2v_jax.models.tokenizer import END, END_OF_WORD, START, ClipTokenizer

BACKTRACK = 20
"""Tokens: what follows a comma goes to the next chunk whole where it is no longer than that."""

Chunk = list[tuple[int, float]]
"""Ids and weights, without start, end and padding."""


def chunks(tokenizer: ClipTokenizer, prompt: str, truncate: bool = False) -> list[Chunk]:
    """Returns the chunks of a weighted prompt, one at least.

    Args:
      tokenizer: of the text encoder.
      prompt: see `prompt_syntax.parse`.
      truncate: leave out all but the first, with a warning.

    Raises:
      InputError: as of `parse`.
    """
    writer = _Writer(tokenizer)
    for number, segments in enumerate(parse(prompt)):
        if number:
            writer.end()
        for text, weight in segments:
            for unit in tokenizer.units(text):
                writer.add(unit.ids, weight)
    if writer.current or not writer.done:
        writer.end()
    if truncate and len(writer.done) > 1:
        left = sum(map(len, writer.done[1:]))
        warnings.warn(
            f"The prompt is longer than {tokenizer.length} tokens; the last {left} are left out: {prompt!r}",
            stacklevel=2,
        )
        return writer.done[:1]
    return writer.done


def rows(
    tokenizer: ClipTokenizer, found: list[Chunk], count: int
) -> tuple[Int32[np.ndarray, "n t"], Float[np.ndarray, "n t"]]:
    """Returns chunks as rows of ids and weights; those that lack are chunks of the empty prompt.

    Args:
      tokenizer: of the text encoder.
      found: from `chunks`.
      count: rows, as many as chunks or more.
    """
    ids = np.full((count, tokenizer.length), tokenizer.vocabulary[tokenizer.pad_token], np.int32)
    weights = np.ones((count, tokenizer.length), np.float32)
    ids[:, 0] = tokenizer.vocabulary[START]
    for number in range(count):
        chunk = found[number] if number < len(found) else []
        inside = slice(1, len(chunk) + 1)
        ids[number, inside] = [token for token, _ in chunk]
        weights[number, inside] = [weight for _, weight in chunk]
        ids[number, len(chunk) + 1] = tokenizer.vocabulary[END]
    return ids, weights


class _Writer:
    """Fills chunks one after the other."""

    def __init__(self, tokenizer: ClipTokenizer):
        self.room, self.comma = tokenizer.length - 2, tokenizer.vocabulary.get(f",{END_OF_WORD}")
        self.done: list[Chunk] = []
        self.current: Chunk = []
        self.last_comma = None  # where in the current chunk

    def add(self, ids: tuple[int, ...], weight: float) -> None:
        is_full = len(self.current) == self.room
        if ids == (self.comma,):
            self.last_comma = len(self.current)
        elif is_full and self.last_comma is not None and self.room - self.last_comma <= BACKTRACK:
            after = self.last_comma + 1
            self.current, moved = self.current[:after], self.current[after:]
            self.end()
            self.current = moved
        if len(self.current) + len(ids) > self.room:
            self.end()
        self.current += [(token, weight) for token in ids]

    def end(self) -> None:
        self.done.append(self.current)
        self.current, self.last_comma = [], None
