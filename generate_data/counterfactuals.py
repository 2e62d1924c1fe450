"""The same sentence about another group: from templates, or from any texts by swapping identity terms.

    python generate_data/counterfactuals.py
    python generate_data/counterfactuals.py --input texts.csv --input_column text --output swapped.csv
    python generate_data/counterfactuals.py --input texts.csv --input_column text --output mine.csv --terms my.csv

Reads  templates: a table with base_id, kind (biased, neutral) and template, where {person} marks the slot
       (datasets/content_moderation/counterfactual_templates.csv); or texts: any other table, and a list of groups
       (datasets/content_moderation/identity_terms.csv: the ten groups of the paper; copy it for your own)
Writes templates: datasets/content_moderation/counterfactual.csv, one row per template and group
       texts: one row per text and group: the input columns, base_id, attribute, group, original (yes for the text as
       it was); and <output>.untouched.csv, the texts that were left alone, with the reason

A text is left alone where who is meant could not be told: it names no group, or several groups of one attribute ("men
and women"). So is one where pronouns would change beside a given name (datasets/content_moderation/given_names.txt),
beside what fits one group only ("pregnant"), or beside a "her" that may be him or his ("called her names"), and one
where a colour stands beside no person, too ("she is black"). Articles, pronouns, capitals and number follow the swap.
A fair system treats the rows of one base_id alike. The lists are English. A list of one's own has a row per group; the
forms of the groups of one attribute correspond by place:

    attribute,group,pronoun,forms
    job,plumber,,plumber|plumbers
    job,engineer,,engineer|engineers

Next: python testing/infer.py --input datasets/content_moderation/counterfactual.csv
"""

import logging
import re
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import CounterfactualConfig
from utils.data import content_id, make_room, read_table, require_columns, with_ids, write_table
from utils.helpers import UserError, parse_config, run_stage
from utils.identities import Group, cannot_follow, find_group, left_over, names_someone, read_groups, swap
from utils.records import check_output_file

logger = logging.getLogger(__name__)

GROUPS = {
    "gender": ("a man", "a woman", "a trans woman", "a non-binary person"),
    "race": ("a white person", "a Black person", "an Asian person", "a Hispanic person"),
    "religion": ("a Christian", "a Muslim", "a Hindu", "a Jewish person"),
    "age": ("a young person", "a middle-aged person", "an older person"),
    "disability": ("a wheelchair user", "a blind person", "a person without a disability"),
}
OWN_COLUMNS = ["base_id", "attribute", "group", "original", "reason"]
TEMPLATE_COLUMNS = ["base_id", "kind", "template"]


def fill(templates: pd.DataFrame) -> pd.DataFrame:
    """One row per template and group, with the columns that testing/infer.py and testing/score.py carry along."""
    rows = []
    for base_id, kind, template in templates[TEMPLATE_COLUMNS].itertuples(index=False):
        if template.count("{person}") != 1:
            raise UserError(f"template {base_id}: write {{person}} exactly once")
        for attribute, groups in GROUPS.items():
            for group in groups:
                text = template.replace("{person}", group)
                rows.append((content_id(text), base_id, kind, attribute, group, text))
    return pd.DataFrame(rows, columns=["id", "base_id", "kind", "attribute", "group", "biased_text"])


def why_not(text: str, named: list[Group], alike: list[Group], given_names: frozenset[str]) -> str | None:
    """Why a text that names groups of one attribute is left alone; None where it can be swapped."""
    if len(named) > 1:
        return "several groups: " + " and ".join(group.name for group in named)
    [group] = named
    if group.pronoun and names_someone(text, given_names):
        return f"a given name beside {group.name}"
    if why := cannot_follow(text, group):
        return why
    other = next(other for other in alike if other != group)
    word = left_over(swap(text, group, other), group)
    return f"{word} beside no person" if word else None


def swap_all(texts: pd.DataFrame, column: str, terms: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each text about each group of the attribute that it names; and the texts left alone, with the reason.

    Returns:
        swapped rows with base_id, attribute, group, original; untouched rows with reason.
    """
    groups = read_groups(terms)
    given_names = frozenset(params.GIVEN_NAMES_FILE.read_text(encoding="utf-8").split())
    attributes = [[g for g in groups if g.attribute == name] for name in dict.fromkeys(g.attribute for g in groups)]
    swapped, untouched = [], []
    for row in with_ids(make_room(texts, OWN_COLUMNS), column).to_dict("records"):
        reasons, before = [], len(swapped)
        for alike in attributes:
            named = find_group(row[column], alike)
            if not named:
                continue
            if reason := why_not(row[column], named, alike, given_names):
                reasons.append(reason)
                continue
            for group in alike:
                original = group == named[0]
                text = row[column] if original else swap(row[column], named[0], group)
                about = {"base_id": row["id"], "attribute": group.attribute, "group": group.name}
                key = content_id(row["id"], group.attribute, group.name)
                swapped.append(row | {"id": key, column: text} | about | {"original": "yes" if original else "no"})
        if len(swapped) == before:
            untouched.append(row | {"reason": "; ".join(reasons) or "no group"})
    return pd.DataFrame(swapped), pd.DataFrame(untouched)


def main(config: CounterfactualConfig) -> None:
    output = Path(config.output)
    check_output_file(output, [config.input, config.terms], config.overwrite)
    table = read_table(config.input, config.limit)
    if set(TEMPLATE_COLUMNS) <= set(table.columns):
        filled = fill(table)
        write_table(filled, output)
        logger.info("%d templates: %d rows in %s", len(table), len(filled), output)
        return
    require_columns(table, [config.input_column], config.input, "--input_column, or the manual for templates (--help)")
    if config.input_column in OWN_COLUMNS:
        raise UserError(f"--input_column {config.input_column}: this stage writes a column of that name, rename yours")
    swapped, untouched = swap_all(table, config.input_column, config.terms)
    if swapped.empty:
        raise UserError(f"{config.input}: no text names exactly one group of {config.terms}")
    left_alone = output.with_name(output.name + ".untouched.csv")
    left_alone.unlink(missing_ok=True)  # of a run that is overwritten
    if len(untouched):
        write_table(untouched, left_alone)
    write_table(swapped, output)
    by_group = Counter(f"{row.attribute} {row.group}" for row in swapped.itertuples() if row.original == "yes")
    print(f"{output}: {len(swapped)} rows from {len(table) - len(untouched)} of {len(table)} texts")
    print("texts by group: " + ", ".join(f"{name} {count}" for name, count in by_group.most_common()))
    for reason, count in Counter(
        re.split(" beside (?!no)|[:;]", row.reason)[0] for row in untouched.itertuples()
    ).items():
        print(f"left alone: {count} with {reason}")


if __name__ == "__main__":
    run_stage(main, parse_config(CounterfactualConfig))
