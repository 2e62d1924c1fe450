"""Swaps the group that a text is about, and keeps the grammar: articles, pronouns, capitals, number.

A list of terms has one row per group: attribute, group, pronoun (he, she or nothing), and its forms joined by "|". The
forms of the groups of one attribute correspond by place. "Asian PERSON" stands for Asian before a word for a person.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from utils.data import read_table, require_columns
from utils.helpers import UserError

_PERSONS = (
    "person people man men woman women boy boys girl girls guy guys kid kids child children teenager teenagers "
    "youth youths adult adults family families parent parents couple couples student students pupil pupils teacher "
    "teachers nurse nurses doctor doctors driver drivers worker workers colleague colleagues employee employees "
    "manager managers neighbour neighbours neighbor neighbors tenant tenants applicant applicants candidate "
    "candidates customer customers resident residents voter voters immigrant immigrants migrant migrants shopkeeper "
    "shopkeepers lad lads community communities household households owner owners player players officer officers "
    "mother mothers father fathers"
).split()
_NOT_OWNED = (
    # words that follow a pronoun which owns nothing: told her to, a friend of his when
    "a about above after again against all alone along although an and any anyway are as at away back because been "
    "before behind below beside but by can cannot could did do does down during each either else even every "
    "everything for from had has have here how if in inside into is it just last like may maybe might more much "
    "must near never next nor not nothing now of off on once only or our out outside over please right she should "
    "since so some something soon still than that the their them then there these they this those though through to "
    "today together tomorrow too tonight twice under unless until up very was we were what when where whether which "
    "while who why will with without would yesterday yet you your"
).split()
_PRONOUNS = {  # subject, object, before a noun, alone, reflexive
    "he": ("he", "him", "his", "his", "himself"),
    "she": ("she", "her", "her", "hers", "herself"),
}


@dataclass(frozen=True)
class Group:
    attribute: str
    name: str
    pronoun: str
    forms: tuple[str, ...]


def read_groups(path: str | Path) -> list[Group]:
    """Reads a list of terms.

    Raises:
        UserError: a column is missing, an attribute has one group only, or its groups differ in the number of forms.
    """
    table = read_table(path)
    require_columns(table, ["attribute", "group", "pronoun", "forms"], path, "--terms")
    groups = [
        Group(attribute, name, pronoun, tuple(forms.split("|")))
        for attribute, name, pronoun, forms in table[["attribute", "group", "pronoun", "forms"]].itertuples(
            index=False
        )
    ]
    for group in groups:
        counts = {len(other.forms) for other in groups if other.attribute == group.attribute}
        if len(counts) > 1 or sum(other.attribute == group.attribute for other in groups) < 2:
            raise UserError(f"{path}: {group.attribute} needs two groups or more, each with as many forms")
        if group.pronoun and group.pronoun not in _PRONOUNS:
            raise UserError(f"{path}: pronoun {group.pronoun!r} of {group.name}: give he, she or nothing")
    return groups


def find_group(text: str, groups: list[Group]) -> list[Group]:
    """The groups of one attribute that a text names."""
    return [group for group in groups if _pattern(group).search(text)]


def left_over(swapped: str, group: Group) -> str | None:
    """A word for the group that still stands in a swapped text: it was beside no person ("she is black")."""
    words = [form.removesuffix(" PERSON") for form in group.forms if form.endswith(" PERSON")]
    return next((word for word in words if re.search(rf"\b{re.escape(word)}\b", swapped, re.IGNORECASE)), None)


def names_someone(text: str, given_names: frozenset[str]) -> bool:
    """Whether a common given name stands in a text: a name keeps its gender where the pronouns change."""
    return not given_names.isdisjoint(re.findall(r"[A-Z][a-z]+", text.title() if text.islower() else text))


def swap(text: str, group: Group, other: Group) -> str:
    """The text with `other` in the place of `group`; both belong to one attribute."""

    def replace(match: re.Match) -> str:
        found = match["term"]
        new = _counterpart(found, text[match.end() :], group, other)
        if found.isupper() and len(found) > 1:
            new = new.upper()
        elif found[0].isupper() and (_begins_sentence(text[: match.start("term")]) or not _is_proper(found, group)):
            new = new[0].upper() + new[1:]
        article = match["article"] or ""
        return _article(article, new) + new if article else new

    return _pattern(group).sub(replace, text)


def _counterpart(found: str, rest: str, group: Group, other: Group) -> str:
    for form, new in sorted(zip(group.forms, other.forms, strict=True), key=lambda pair: -len(pair[0])):
        base = form.removesuffix(" PERSON")
        if found.lower() == base.lower():
            return new.removesuffix(" PERSON")
    place = _pronoun_place(found.lower(), rest, group.pronoun)
    return _PRONOUNS[other.pronoun][place]


def _pronoun_place(found: str, rest: str, pronoun: str) -> int:
    """Which of the five pronouns it is: her is told by what follows from her, and his from his."""
    places = [place for place, form in enumerate(_PRONOUNS[pronoun]) if form == found]
    if len(places) == 1:
        return places[0]
    following = re.match(r"\s+([\w'-]+)", rest)
    owns = following is not None and following[1].lower() not in _NOT_OWNED
    return 2 if owns else next(place for place in places if place != 2)


def _begins_sentence(before: str) -> bool:
    return before.strip() == "" or before.rstrip("\"'([“‘ ")[-1:] in ".!?\n"


def _is_proper(found: str, group: Group) -> bool:
    """Whether a term is written with a capital wherever it stands."""
    return any(found == form.removesuffix(" PERSON") for form in group.forms if form[0].isupper())


def _article(article: str, following: str) -> str:
    """ "a " or "an ", with the capital of the one that stood there."""
    import inflect

    right = inflect.engine().a(following).split(" ", 1)[0]
    return (right.capitalize() if article[0].isupper() else right) + article[len(article.rstrip()) :]


@cache
def _pattern(group: Group) -> re.Pattern:
    """A form of the group or, where it has one, a pronoun; with the article before it. Longer forms first."""
    forms = sorted(group.forms, key=len, reverse=True)
    terms = [
        re.escape(form.removesuffix(" PERSON")) + (rf"(?=\s+(?:{'|'.join(_PERSONS)})\b)" if "PERSON" in form else "")
        for form in forms
    ]
    if group.pronoun:
        terms += sorted(set(_PRONOUNS[group.pronoun]), key=len, reverse=True)
    return re.compile(rf"(?:\b(?P<article>an?\s+))?\b(?P<term>{'|'.join(terms)})\b(?!['’]?-)", re.IGNORECASE)
