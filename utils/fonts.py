"""Which font draws a text: DejaVu Sans, which comes with matplotlib, else an installed one; no download."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

# Parts of file names, lower case, of fonts with many scripts that are made for screens: the first that has
# every letter is taken, and of any other font one that has them, so that no script depends on this list.
_PREFERRED = (
    *("notosanscjk", "sourcehansans", "notosans", "wqy-", "droidsansfallback", "arial unicode", "arialuni"),
    *("pingfang", "hiragino", "applesdgothic", "msyh", "yugoth", "malgun", "simhei", "simsun"),
)


@lru_cache(maxsize=2048)
def font_for(text: str) -> str | None:
    """File of a font that has a glyph for every character of a text, or None where there is none."""
    needed = np.array(sorted({ord(character) for character in text if _is_inked(character)}), np.uint32)
    for path in _fonts():
        if np.isin(needed, _characters(path)).all():
            return path
    return None


def default_font() -> str:
    """DejaVu Sans, from the copy in every matplotlib."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _is_inked(character: str) -> bool:
    """Whether a character is drawn itself, as spaces, joiners and variation selectors are not."""
    unseen = unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"
    return not (character.isspace() or unseen)


@lru_cache(maxsize=1)
def _fonts() -> list[str]:
    """Every font file: the default, then those installed, the best for labels first."""
    from matplotlib.font_manager import findSystemFonts

    return [default_font(), *sorted(findSystemFonts(), key=_rank)]


def _rank(path: str) -> tuple[int, bool, str]:
    name = Path(path).name.lower()
    kind = next((i for i, part in enumerate(_PREFERRED) if part in name), len(_PREFERRED))
    return kind, "regular" not in name, path


@cache
def _characters(path: str) -> np.ndarray:
    """Code points (n,) uint32 that a font file can draw at any size; none when it cannot be used."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    try:
        ImageFont.truetype(path, 20)  # refuses fonts of coloured pictures, which have one size only
        return np.fromiter(FT2Font(path).get_charmap(), np.uint32)
    except (OSError, RuntimeError, ValueError):
        return np.zeros(0, np.uint32)
