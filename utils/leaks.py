"""Do training prompts give away an evaluation set? By shared runs of words, and by near-duplicates."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from utils import params


class Leak(NamedTuple):
    """A training text that an evaluation text is found in, or nearly is."""

    row: int  # of the training texts, from 0
    text: int  # of the evaluation texts, from 0
    how: str  # "words" or "near"


def find_leaks(rows: Sequence[str], texts: Sequence[str]) -> list[Leak]:
    """For every training text that leaks, one evaluation text that it leaks.

    Words: both hold the same params.LEAK_WORDS words in a row, as in the contamination checks of GPT-3 and its
    successors; of a shorter evaluation text all its words, if the training text has no others. Near: the Jaccard
    similarity of their runs of params.LEAK_SHINGLE characters is at least params.LEAK_SIMILARITY. Candidates for the
    latter come from MinHash (datasketch), whose guess is then checked.
    """
    where: dict[tuple[str, ...], int] = {}
    for n, text in enumerate(texts):
        for run in _runs(_words(text)):
            where.setdefault(run, n)
    found = {}
    for n, row in enumerate(rows):
        shared = next((run for run in _runs(_words(row)) if run in where), None)
        if shared:
            found[n] = Leak(n, where[shared], "words")
    for leak in _near(rows, texts):
        found.setdefault(leak.row, leak)
    return [found[n] for n in sorted(found)]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def _runs(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All runs of LEAK_WORDS words; of fewer words the only one. Of different length they are never equal."""
    size = min(params.LEAK_WORDS, len(words))
    return [words[n : n + size] for n in range(len(words) - size + 1)] if words else []


def _shingles(text: str) -> set[str]:
    text = " ".join(_words(text))
    return {text[n : n + params.LEAK_SHINGLE] for n in range(max(1, len(text) - params.LEAK_SHINGLE + 1))}


def _near(rows: Sequence[str], texts: Sequence[str]) -> list[Leak]:
    from datasketch import MinHash, MinHashLSH

    # candidates are cheap and checked: better too many (at the threshold itself it finds 99 of 100)
    index = MinHashLSH(threshold=params.LEAK_CANDIDATE, num_perm=params.LEAK_HASHES, weights=(0.1, 0.9))
    for n, text in enumerate(texts):
        index.insert(n, _sketch(MinHash, text))
    leaks = []
    for n, row in enumerate(rows):
        mine = _shingles(row)
        for candidate in sorted(index.query(_sketch(MinHash, row))):
            theirs = _shingles(texts[candidate])
            if len(mine & theirs) >= params.LEAK_SIMILARITY * len(mine | theirs):
                leaks.append(Leak(n, candidate, "near"))
                break
    return leaks


def _sketch(kind: type, text: str):
    sketch = kind(num_perm=params.LEAK_HASHES)
    sketch.update_batch([part.encode() for part in _shingles(text)])
    return sketch
