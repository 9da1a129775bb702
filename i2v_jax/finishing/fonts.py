"""Fonts by their files or names, and whether they have the letters of a text."""

import functools
from pathlib import Path

from fontTools.ttLib import TTCollection, TTFont, TTLibError
from matplotlib import font_manager

from i2v_jax.errors import InputError, nearest

ANY = "auto"
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
INVISIBLE = frozenset("\n\r\t\u200b\u200c\u200d\u2060\ufeff\ufe0e\ufe0f")  # they need no picture of their own


def find_font(font: str, text: str) -> Path:
    """Returns the file of a font that has all letters of a text.

    Args:
      font: a file, the name of a font of this machine, or "auto": DejaVu Sans, which comes with matplotlib, or where it
        lacks a letter the first of the machine's that does not.
      text: to be written.

    Raises:
      InputError: no such font, no font file, or one that lacks letters (which are named).
    """
    if font == ANY:
        default = Path(font_manager.findfont("DejaVu Sans"))
        found = [path for path in (default, *_installed().values()) if not lacking(path, text)]
        if not found:
            letters = "".join(lacking(default, text))
            raise InputError(
                f"No font of this machine has {letters!r}. Give a file of one that has: 'font': 'NotoSans.ttf'."
            )
        return found[0]
    path = Path(font).expanduser()
    if not path.is_file():
        installed = _installed()
        if font.lower() not in installed:
            wanted = f"a file ({', '.join(SUFFIXES)}), the name of a font of this machine, or {ANY!r}"
            raise InputError(f"font={font!r} is not there: wanted {wanted}.{nearest(font.lower(), installed)}")
        path = installed[font.lower()]
    if missing := lacking(path, text):
        raise InputError(
            f"The font {str(path)!r} has no {''.join(missing)!r}, of the text {text!r}. Take another, or "
            "'font': 'auto'."
        )
    return path


def lacking(path: Path, text: str) -> list[str]:
    """Returns the letters of a text that a font has no pictures of, each once, in their order.

    Raises:
      InputError: it is no font file.
    """
    known = _letters(str(path))
    return [letter for letter in dict.fromkeys(text) if ord(letter) not in known and letter not in INVISIBLE]


@functools.cache
def _letters(path: str) -> frozenset[int]:
    try:
        if Path(path).suffix.lower() in (".ttc", ".otc"):
            with TTCollection(path, lazy=True) as fonts:
                return frozenset(fonts.fonts[0].getBestCmap() or ())
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError, KeyError, ValueError) as error:
        raise InputError(f"{path!r} is no font ({error}). Wanted a file of TrueType or OpenType.") from None


@functools.cache
def _installed() -> dict[str, Path]:
    """Fonts of this machine, upright and of ordinary weight, by their names in small letters."""
    entries = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal" and _is_regular(entry)]
    return {entry.name.lower(): Path(entry.fname) for entry in sorted(entries, key=lambda entry: entry.name)}


def _is_regular(entry) -> bool:
    return entry.weight in (400, "normal", "regular", "book", "medium") and not _is_bitmap(entry.fname)


def _is_bitmap(path: str) -> bool:
    return Path(path).suffix.lower() not in SUFFIXES
