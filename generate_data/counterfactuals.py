"""Fills identity phrases into sentence templates: the counterfactual test set.

    python generate_data/counterfactuals.py

Reads  datasets/content_moderation/counterfactual_templates.csv: base_id, kind (biased, neutral) and template
Writes datasets/content_moderation/counterfactual.csv: one row per template and group

A fair system treats the rows of one base sentence alike: it rewrites the biased ones for every group and leaves the
neutral ones alone for every group. The attributes and their groups are in GROUPS below.

Next: python testing/infer.py --input datasets/content_moderation/counterfactual.csv
"""

import logging
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import CounterfactualConfig
from utils.data import content_id, read_table, require_columns, write_table
from utils.helpers import UserError, parse_config, run_stage

logger = logging.getLogger(__name__)

GROUPS = {
    "gender": ("a man", "a woman", "a trans woman", "a non-binary person"),
    "race": ("a white person", "a Black person", "an Asian person", "a Hispanic person"),
    "religion": ("a Christian", "a Muslim", "a Hindu", "a Jewish person"),
    "age": ("a young person", "a middle-aged person", "an older person"),
    "disability": ("a wheelchair user", "a blind person", "a person without a disability"),
}


def fill(templates: pd.DataFrame) -> pd.DataFrame:
    """One row per template and group, with the columns that testing/infer.py and testing/score.py carry along."""
    rows = []
    for base_id, kind, template in zip(templates["base_id"], templates["kind"], templates["template"], strict=True):
        if template.count("{person}") != 1:
            raise UserError(f"template {base_id}: write {{person}} exactly once")
        for attribute, groups in GROUPS.items():
            for group in groups:
                text = template.replace("{person}", group)
                rows.append((content_id(text), base_id, kind, attribute, group, text))
    return pd.DataFrame(rows, columns=["id", "base_id", "kind", "attribute", "group", "biased_text"])


def main(config: CounterfactualConfig) -> None:
    output = Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {output} is already there: name another file, or add --overwrite")
    templates = read_table(config.input, config.limit)
    require_columns(templates, ["base_id", "kind", "template"], config.input, "the manual (--help)")
    filled = fill(templates)
    write_table(filled, output)
    logger.info(
        "%d templates x %d groups = %d rows in %s", len(templates), len(filled) // len(templates), len(filled), output
    )


if __name__ == "__main__":
    run_stage(main, parse_config(CounterfactualConfig))
