"""A verdict that is one of a few words: with what probability did a model say each of them?"""

import math
import re
from collections import defaultdict

from utils.answers import Answer


def label_probabilities(answer: Answer, labels: tuple[str, ...], lead: str = "") -> dict[str, float]:
    """Probabilities of the labels, which sum to 1: what the model gave their tokens at the place of the verdict.

    That is the place after `lead`, if its likeliest token is a label, or the beginning of one that no other label has.
    Where no probabilities were told, the one label that the answer names has 1.

    Args:
        labels: in lower case.
        lead: what is written before the verdict; blanks do not count.

    Raises:
        ValueError: the answer names no label, or several.
    """
    written = ""
    for place in filter(None, answer.likely or []):
        likeliest = max(place, key=place.get)
        if written.strip().lower() == lead.strip().lower() and _label_of(likeliest, labels):
            found: dict[str, float] = defaultdict(float)
            for token, nats in place.items():
                if label := _label_of(token, labels):
                    found[label] += math.exp(nats)
            return {label: found[label] / sum(found.values()) for label in labels}
        written += likeliest
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    named = set(re.findall(rf"(?<![\w-])({names})(?!\w)", answer.text.lower()))
    if len(named) != 1:
        raise ValueError(f"expected one of {', '.join(labels)}")
    return {label: float(label in named) for label in labels}


def _label_of(token: str, labels: tuple[str, ...]) -> str | None:
    """The one label that begins with a token."""
    text = token.strip(" \n\t\u2581\u0120\"'*(.:").lower()
    begun = [label for label in labels if text and (label.startswith(text) or label == text)]
    return text if text in labels else begun[0] if len(begun) == 1 else None
