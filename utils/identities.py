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
    "adult adults applicant applicants boy boyfriend boys brother brothers candidate candidates child children "
    "colleague colleagues communities community couple couples coworker coworkers customer customers dad daughter "
    "daughters doctor doctors driver drivers employee employees families family father fathers female females "
    "friend friends gentleman gentlemen girl girlfriend girls grandfather grandmother guy guys household "
    "households husband husbands immigrant immigrants kid kids lad ladies lads lady male males man manager "
    "managers men migrant migrants mom mother mothers neighbor neighbors neighbour neighbours nurse nurses "
    "officer officers owner owners parent parents people person player players pupil pupils resident residents "
    "shopkeeper shopkeepers sister sisters son sons student students teacher teachers teenager teenagers tenant "
    "tenants voter voters wife wives woman women worker workers youth youths"
).split()
_NOT_OWNED = (
    # words that follow a pronoun which owns nothing: told her to, a friend of his when
    "a about above after again against all alone along although an and any anyway are as at away back because "
    "been before behind below beside but by can cannot could did do does down during everything for from had has "
    "have here how if in into is it may maybe might must never nor not nothing of off on or our out over please "
    "she should since so some something soon than that the their them then there these they this those though "
    "through to today together tomorrow tonight twice under unless until up was we were what when where whether "
    "which while who why will with without would yesterday yet you your"
).split()
_TAKES_OBJECT = (
    # before "her" and a further word these make two readings: called her lazy, called her sister
    "ask asked asking bring brought bought buy call called calling calls feel felt find found gave get give given "
    "gives giving got hear heard help helped helping helps hold keep keeps kept leave left lend lent let lets "
    "letting made make makes making notice noticed offer offered owe owed paid pay paying pays promise promised "
    "saw see seeing seen sees send sent show showed shown teach taught tell telling tells think thought told want "
    "wanted wants watch watched wish"
).split()
_OF_ONE_SEX = (
    r"\b(pregnan\w*|breastfe\w*|menstruat\w*|menopaus\w*|womb|prostate|beard\w*|moustache|miscarriage|uterus)\b"
)
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
            raise UserError(
                f"{path}: {group.attribute} needs two groups or more, each with as many forms (joined by |)"
            )
        if group.pronoun and group.pronoun not in _PRONOUNS:
            raise UserError(f"{path}: pronoun {group.pronoun!r} of {group.name}: give he, she or nothing")
    return groups


def find_group(text: str, groups: list[Group]) -> list[Group]:
    """The groups of one attribute that a text names."""
    return [group for group in groups if _pattern(group).search(text)]


def cannot_follow(text: str, group: Group) -> str | None:
    """What in a text would not fit once the pronouns of `group` are swapped; None if nothing is seen."""
    if not group.pronoun:
        return None
    if found := re.search(_OF_ONE_SEX, text, re.IGNORECASE):
        return f"{found[0].lower()} fits one group only"
    if group.pronoun == "she":
        for found in re.finditer(r"\b(\w+)\s+her\s+([\w'-]+)", text, re.IGNORECASE):
            if found[1].lower() in _TAKES_OBJECT and found[2].lower() not in _NOT_OWNED:
                return f"her in {found[0]!r} may be him or his"
    return None


def left_over(swapped: str, group: Group) -> str | None:
    """A word for the group that still stands in a swapped text: it was beside no person ("she is black")."""
    words = [form.removesuffix(" PERSON") for form in group.forms if form.endswith(" PERSON")]
    return next((word for word in words if re.search(rf"\b{re.escape(word)}\b", swapped, re.IGNORECASE)), None)


def names_someone(text: str, given_names: frozenset[str]) -> bool:
    """Whether a common given name stands in a text: a name keeps its gender where the pronouns change."""
    return not given_names.isdisjoint(re.findall(r"[A-Z][a-z]+", text))


def swap(text: str, group: Group, other: Group) -> str:
    """The text with `other` in the place of `group`; both belong to one attribute."""

    def replace(match: re.Match) -> str:
        found = match["term"]
        new = _counterpart(found, text[match.end() :], group, other)
        new += _possessive(match["own"] or "", new, found)
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


def _possessive(own: str, new: str, found: str) -> str:
    """ "'s" or "'" after a noun, by whether the new one is a plural; what follows a pronoun ("he's") stays."""
    if not own or found.lower() in {form for forms in _PRONOUNS.values() for form in forms}:
        return own
    return own[0] if new.endswith("s") and not new.endswith("ss") else own[0] + "s"


def _begins_sentence(before: str) -> bool:
    return before.strip() == "" or before.rstrip("\"'([“‘ ")[-1:] in ".!?\n"


def _is_proper(found: str, group: Group) -> bool:
    """Whether a term is written with a capital wherever it stands."""
    return any(found == form.removesuffix(" PERSON") for form in group.forms if form[0].isupper())


def _article(article: str, following: str) -> str:
    """ "a " or "an ", with the capital of the one that stood there."""
    right = _english().a(following).split(" ", 1)[0]
    return (right.capitalize() if article[0].isupper() else right) + article[len(article.rstrip()) :]


@cache
def _english():
    import inflect

    return inflect.engine()


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
    return re.compile(
        rf"(?:\b(?P<article>an?\s+))?\b(?P<term>{'|'.join(terms)})\b(?!-)(?P<own>['’]s\b|(?<=s)['’](?!\w))?",
        re.IGNORECASE,
    )
