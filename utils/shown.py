"""Texts from data as people are shown them: what changed is marked, and what could do something is only seen."""

import re
from difflib import SequenceMatcher

from utils import params

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
# marks that turn the reading direction of what follows
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f]")
_PIECE = re.compile(r"\w+(?:['’-]\w+)*|\s+|[^\w\s]")


def visible(text: object) -> str:
    """Text from data in which control characters, such as terminal escapes, are seen and do nothing."""
    return _UNSEEN.sub("\ufffd", str(text).translate(_CONTROLS))


def marked_edits(source: str, text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Both texts in pieces: what was taken out ("out") and put in ("in").

    Texts that have little in common are left unmarked: an answer is no rewriting of its prompt.
    """
    before, after = (_PIECE.findall(side) for side in (source, text))
    if len(before) + len(after) > 10_000:  # the time it takes grows with the square
        return [(source, "")], [(text, "")]
    diff = SequenceMatcher(None, [p.lower() for p in before], [p.lower() for p in after], autojunk=False)
    if diff.ratio() < params.MARKED_SHARE:
        return [(source, "")], [(text, "")]
    out, put = [], []
    for tag, i1, i2, j1, j2 in diff.get_opcodes():
        out.append(("".join(before[i1:i2]), "" if tag == "equal" else "out"))
        put.append(("".join(after[j1:j2]), "" if tag == "equal" else "in"))
    return out, put
