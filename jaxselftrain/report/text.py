"""Takes text that a model or a stranger wrote, gives the same with nothing in it that acts unseen, and not too much of it.

Escaping for HTML is the template's; this is about what escaping leaves: control characters, half surrogates, marks that turn
the direction of what follows.
"""

from __future__ import annotations

import re
import unicodedata

_UNUSUAL = re.compile(r"[^\n\t -~]")
_JOINERS = "\u200c\u200d"  # part of how Persian, Hindi and emoji are written


def visible(text: str) -> str:
    """The text with what cannot be seen spelled out, such as ⟨U+202E⟩, which would reverse the text after it.

    Line feeds and tabs stay. The result can always be written as UTF-8.
    """
    return _UNUSUAL.sub(_spelled, text)


def cut(text: str, limit: int) -> tuple[str, int]:
    """(the beginning of the text, the number of characters left out)."""
    return text[:limit], max(0, len(text) - limit)


def _spelled(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    if hidden or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        return f"⟨U+{code:04X}⟩"
    return character
