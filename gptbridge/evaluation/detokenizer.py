"""WikiText's tokens back to text, in the steps that Megatron-LM and its successors take.

The corpus has spaces around punctuation and marks for joints (`@-@`). The order of the steps counts.
"""

from __future__ import annotations

import re

_JOINTS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_MARKS = ":;.!?,"
_ENCLOSING = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenize(text: str, *, every_full_stop: bool = False) -> str:
    """Return `text` as it was before WikiText was made of it.

    `every_full_stop` takes the space before one even where none follows, as MindFormers does.
    """
    text = text.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", "/'[0-9]/", text)  # theirs: it was to be '[0-9], and has no effect
    for old, new in _JOINTS:
        text = text.replace(old, new)
    for mark in _MARKS:
        text = text.replace(f" {mark} ", f"{mark} ")
        if mark == "." and every_full_stop:
            text = text.replace(" .", ".")
    for left, right in _ENCLOSING:
        text = _trimmed_inside(text, left, right)
    for old, new in _REST:
        text = text.replace(old, new)
    return text


def _trimmed_inside(text: str, left: str, right: str) -> str:
    r"""Return `text` without white space inside of pairs: `\(\s*([^)]*?)\s*\)`, but in linear time."""
    parts, begin = [], 0
    while (start := text.find(left, begin)) >= 0 and (end := text.find(right, start + 1)) >= 0:
        parts += [text[begin : start + 1], text[start + 1 : end].strip(), right]
        begin = end + 1
    return "".join(parts) + text[begin:]
