"""A rewriting as a list of edits: which spans of the source change, and what stands there instead.

A small model that has to repeat a whole text to change three words of it learns to repeat. So the work is cut in two:
the words to change are found first (utils/spotter.py), and the model writes only what goes in their place. What stands
outside the brackets, and the facts in it, stay by construction. The idea is that of text-editing models (FELIX,
Mallinson et al. 2020, arXiv 2003.10687: tag, then insert), here with a chat model that fills numbered brackets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

DROP = "(drop)"  # what a model writes for a span that goes without replacement
MERGE_GAP = 1  # edits with at most so many words and signs between them are one: function words match by chance

_UNIT = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_FILLING = re.compile(r"(\d+):[ \t]*(.*)")
_MARK = re.compile(r"\[\d+:\s*([^\]]*)\]?")
_CLOSING = tuple(",.;:!?)")
_ENDS, _PAUSES = ".!?", ",;:"

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
    """The edits that turn `source` into `rewriting`, from left to right.

    Case, punctuation and spacing alone make no edit: nobody is treated unfairly by them. A pure insertion takes the
    word before it along (the first one: the word after it), since there must be something to put into brackets.
    """
    before, after = list(_UNIT.finditer(source)), list(_UNIT.finditer(rewriting))
    sides = [[match.group().lower() for match in side] for side in (before, after)]
    merged: list[list[int]] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, *sides, autojunk=False).get_opcodes():
        if tag == "equal" or not any(unit[0].isalnum() for unit in sides[0][i1:i2] + sides[1][j1:j2]):
            continue
        if merged and i1 - merged[-1][1] <= MERGE_GAP:
            merged[-1][1], merged[-1][3] = i2, j2
        else:
            merged.append([i1, i2, j1, j2])
    edits = []
    for i1, i2, j1, j2 in merged:
        if i1 == i2 and i1:
            i1, j1 = i1 - 1, j1 - 1
        elif i1 == i2 and before:
            i2, j2 = i2 + 1, j2 + 1
        if i1 < i2:
            text = rewriting[after[j1].start() : after[j2 - 1].end()] if j2 > j1 else ""
            edits.append(Edit(before[i1].start(), before[i2 - 1].end(), " ".join(text.split())))
    return edits


def changed_words(source: str, rewriting: str) -> list[bool]:
    """For each word of the source, whether it lies in a span that the rewriting changes."""
    edits = edits_between(source, rewriting)
    return [any(edit.start < end and start < edit.end for edit in edits) for start, end in words_of(source)]


def join_words(source: str, chosen: Sequence[bool]) -> list[Span]:
    """Spans of the chosen words of `words_of(source)`; like edits, they are joined over MERGE_GAP words and signs."""
    spans: list[Span] = []
    for (start, end), is_chosen in zip(words_of(source), chosen, strict=True):
        if not is_chosen:
            continue
        between = source[spans[-1][1] : start] if spans else ""
        if spans and len(_UNIT.findall(between)) <= MERGE_GAP and "\n" not in between:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
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
    """Number of the bracket -> what to put there. Lines without a number, and a number said again, are passed over;
    of brackets that the model writes itself only the content is taken."""
    found: dict[int, str] = {}
    for line in answer.splitlines():
        match = _FILLING.match(line.strip())
        if match:
            text = _MARK.sub(r"\1", match[2]).strip()
            found.setdefault(int(match[1]), "" if text.strip("(). ").lower() == "drop" else text)
    return found


def fill(source: str, spans: Sequence[Span], fillings: dict[int, str]) -> str:
    """The source with its spans replaced; a span without a filling is dropped, since it was found unfair.

    A text that opens with a capital still does, and signs do not pile up where a span ends or has gone.
    """
    written, end = "", 0
    for number, (start, stop) in enumerate(spans, 1):
        text, kept, following = fillings.get(number, ""), source[end:start], source[stop : stop + 1]
        if not text:
            before = (written + kept).rstrip(" ")
            if following and following in _PAUSES and (not before or before[-1] in _ENDS + "\n"):
                stop += 1  # the comma after a word of address goes with it
            elif following and following in _PAUSES + _ENDS:
                kept = kept.rstrip(",; ")
            # one of the two spaces around a dropped span goes with it, a new line stays
            opens = not (written + kept) or (written + kept)[-1].isspace()
            if opens and source[stop : stop + 1] == " ":
                stop += 1
            else:
                kept = kept.rstrip(" ")
        else:
            text = _without_double_sign(text, following)
            if text.startswith(_CLOSING):
                kept = kept.rstrip(" ")
            elif source[start:stop].startswith(_CLOSING) and kept[-1:].isalnum():
                kept += " "
        written, end = written + kept + text, stop
    written += source[end:]
    return written[:1].upper() + written[1:] if source[:1].isupper() else written


def _without_double_sign(text: str, following: str) -> str:
    """The text without its last sign, where the sign after it makes that one too many ("U.S.," is not)."""
    ends_twice = text[-1] in _ENDS and following in tuple(_ENDS)
    pauses_before_a_sign = text[-1] in _PAUSES and following in tuple(_ENDS + _PAUSES)
    return text[:-1] if ends_twice or pauses_before_a_sign else text
