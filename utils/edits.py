"""A rewriting as a list of edits: which spans of the source change, and what stands there instead.

A small model that has to repeat a whole text to change three words of it learns to repeat. So the work is cut in two:
the words to change are found first (utils/spotter.py), and the model writes only what goes in their place. All other
words of the source, and the facts in them, stay by construction. The idea is that of text-editing models (FELIX,
Mallinson et al. 2020, arXiv 2003.10687: tag, then insert), here with a chat model that fills numbered brackets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

DROP = "(drop)"  # what a model writes for a span that goes without replacement
MERGE_GAP = 2  # edits with at most so many words and signs between them are one: function words match by chance

_UNIT = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_FILLING = re.compile(r"(\d+):[ \t]*(.*)")
_CLOSING = tuple(",.;:!?)")

Span = tuple[int, int]


@dataclass(frozen=True)
class Edit:
    """Characters `start` to `end` of the source become `text`, which may be empty."""

    start: int
    end: int
    text: str

    @property
    def span(self) -> Span:
        return self.start, self.end


def words_of(text: str) -> list[Span]:
    """Spans of the words; hyphens and apostrophes inside a word belong to it."""
    return [match.span() for match in _UNIT.finditer(text) if match.group()[0].isalnum()]


def edits_between(source: str, rewriting: str) -> list[Edit]:
    """The edits that turn `source` into `rewriting`, from left to right; empty where they have the same words.

    A pure insertion takes the word before it along (the first one: the word after it), since there must be something
    to put into brackets.
    """
    before, after = list(_UNIT.finditer(source)), list(_UNIT.finditer(rewriting))
    if not before:
        return []
    matcher = SequenceMatcher(None, [m.group() for m in before], [m.group() for m in after], autojunk=False)
    merged: list[list[int]] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        if merged and i1 - merged[-1][1] <= MERGE_GAP:
            merged[-1][1], merged[-1][3] = i2, j2
        else:
            merged.append([i1, i2, j1, j2])
    edits = []
    for i1, i2, j1, j2 in merged:
        if i1 == i2:
            i1, i2, j1, j2 = (i1 - 1, i2, j1 - 1, j2) if i1 else (i1, i2 + 1, j1, j2 + 1)
        text = rewriting[after[j1].start() : after[j2 - 1].end()] if j2 > j1 else ""
        edits.append(Edit(before[i1].start(), before[i2 - 1].end(), " ".join(text.split())))
    return edits


def join_words(words: Sequence[Span], chosen: Sequence[bool]) -> list[Span]:
    """Spans of the chosen words. One word between two chosen ones is taken along: "are [all the] same"."""
    spans: list[Span] = []
    last = -MERGE_GAP - 1
    for number, (word, is_chosen) in enumerate(zip(words, chosen, strict=True)):
        if not is_chosen:
            continue
        if spans and number - last <= MERGE_GAP:
            spans[-1] = (spans[-1][0], word[1])
        else:
            spans.append(word)
        last = number
    return spans


def mark(source: str, spans: Sequence[Span]) -> str:
    """The source with its spans in numbered brackets: 'These [1: fakers] again'."""
    parts, end = [], 0
    for number, (start, stop) in enumerate(spans, 1):
        parts += [source[end:start], f"[{number}: {source[start:stop]}]"]
        end = stop
    return "".join([*parts, source[end:]])


def write_fillings(edits: Sequence[Edit]) -> str:
    """What a model should answer to the marked source: one numbered line per bracket."""
    return "\n".join(f"{number}: {edit.text or DROP}" for number, edit in enumerate(edits, 1))


def read_fillings(answer: str) -> dict[int, str]:
    """Number of the bracket -> what to put there. Lines without a number, and a number said again, are passed over."""
    found: dict[int, str] = {}
    for line in answer.splitlines():
        match = _FILLING.match(line.strip())
        if match:
            text = match[2].strip()
            found.setdefault(int(match[1]), "" if text == DROP else text)
    return found


def fill(source: str, spans: Sequence[Span], fillings: dict[int, str]) -> str:
    """The source with its spans replaced; a span without a filling is dropped, since it was found unfair."""
    written, end = "", 0
    for number, (start, stop) in enumerate(spans, 1):
        text, kept = fillings.get(number, ""), source[end:start]
        if not text:  # one of the two spaces around a dropped span goes with it, a new line stays
            opens = not (written + kept) or (written + kept)[-1].isspace()
            if opens and source[stop : stop + 1] == " ":
                stop += 1
            else:
                kept = kept.rstrip(" ")
        elif text.startswith(_CLOSING):
            kept = kept.rstrip()
        elif source[start:stop].startswith(_CLOSING) and kept[-1:].isalnum():
            kept += " "
        written, end = written + kept + text, stop
    return written + source[end:]
