"""Trains the toxicity classifier of testing/score.py: a linear layer on a frozen language model.

    python training/train_toxicity.py                                  # the embedded model and data: three minutes
    python training/train_toxicity.py --input posts.csv --text_column text --label_column label --toxic_labels hate

Reads  a file with texts and labels; by default datasets/content_moderation/: texts labelled Mild or High in toxicity
       against the others and all rewritings, and counterfactual texts, prejudiced against neutral ones about the same
       groups, so that to name a group is not toxic
Writes models/toxicity/: toxicity.safetensors (some thousand numbers), metrics.json, run.json

The printed figures are of rows that the classifier was not trained on (cross-validation; a text and its rewriting, and
all versions of a template, stay on one side), of the same kind as those it was. What it is worth on other people's
texts, ToxiGen and HateCheck, is in benchmarks/RESULTS.md: a good deal less. It needs no download. Where one can be
had, use Detoxify or another classifier (see testing/scorers/toxicity.py).

Next: python testing/score.py --scorers toxicity
"""

import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import ToxicityConfig
from utils.data import read_table, require_columns
from utils.helpers import UserError, describe, parse_config, run_stage
from utils.loading import check_kind, load_base, load_tokenizer
from utils.models import model_record, resolve
from utils.preferences import is_one_of, label_names
from utils.records import check_output_folder, finish_record, start_record, whole_folder, write_json

logger = logging.getLogger(__name__)


def embedded_rows() -> pd.DataFrame:
    """The embedded texts: `text`, `toxic` (bool), and `group`, rows that stay on one side of a split."""
    pairs, templates = read_table(params.TRAIN_FILE), read_table(params.COUNTERFACTUAL_FILE)
    rewritten = pairs[pairs[params.INPUT_COLUMN] != pairs[params.REFERENCE_COLUMN]]
    parts = [
        pd.DataFrame({"text": texts, "toxic": toxic, "group": groups})
        for texts, toxic, groups in (
            (pairs[params.INPUT_COLUMN], pairs["toxicity"] != "No", pairs["id"]),
            (rewritten[params.REFERENCE_COLUMN], False, rewritten["id"]),
            (templates[params.INPUT_COLUMN], templates["kind"] == "biased", templates["base_id"]),
        )
    ]
    return pd.concat(parts, ignore_index=True)


def read_rows(config: ToxicityConfig) -> pd.DataFrame:
    """The same of a labelled file; equal texts are one group."""
    frame = read_table(config.input, config.limit)
    require_columns(frame, [config.text_column], config.input, "--text_column")
    require_columns(frame, [config.label_column], config.input, "--label_column")
    toxic = label_names(config.toxic_labels)
    labels = [is_one_of(label, toxic) for label in frame[config.label_column]]
    rows = pd.DataFrame({"text": frame[config.text_column], "toxic": labels})
    rows = rows[rows["text"].str.strip() != ""].reset_index(drop=True)
    return rows.assign(group=rows["text"])


def check(rows: pd.DataFrame, config: ToxicityConfig) -> None:
    """Is there enough to learn from? Raises UserError where there is not."""
    kinds = rows.drop_duplicates("group")["toxic"].value_counts()
    least = 2 * params.TOXICITY_FOLDS
    if min(kinds.get(True, 0), kinds.get(False, 0)) < least:
        raise UserError(
            f"{config.input or '--limit'}: {kinds.get(True, 0)} different texts are toxic, {kinds.get(False, 0)} are "
            f"not, {least} of each are needed: see --label_column and --toxic_labels"
        )


def cross_validate(features: np.ndarray, rows: pd.DataFrame) -> dict[str, float]:
    """AUROC, and at a probability of one half sensitivity and specificity, on rows left out."""
    from scipy.special import expit
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    from utils.spotter import fit

    toxic, found = rows["toxic"].to_numpy(), np.empty(len(rows))
    folds = GroupKFold(params.TOXICITY_FOLDS, shuffle=True, random_state=params.SEED)
    for seen, unseen in folds.split(features, groups=rows["group"]):
        found[unseen] = expit(fit(features[seen], toxic[seen], params.TOXICITY_C)(features[unseen]))
    return {
        "texts": len(rows),
        "toxic": float(toxic.mean()),
        "auroc": float(roc_auc_score(toxic, found)),
        "sensitivity": float((found[toxic] >= 0.5).mean()),
        "specificity": float((found[~toxic] < 0.5).mean()),
    }


def main(config: ToxicityConfig) -> None:
    output = Path(config.output)
    rows = read_rows(config) if config.input else embedded_rows()
    if config.limit and not config.input:  # some of each kind
        rows = rows.sample(min(config.limit, len(rows)), random_state=params.SEED)
    check(rows, config)
    check_output_folder(output, config.overwrite)
    ref = resolve(config.base_model, revision=config.revision)
    check_kind(ref, encoder_decoder=False)
    logger.info("training a toxicity classifier on %d texts, %s (%s)", len(rows), ref.name, describe(config))
    inputs = [Path(config.input)] if config.input else [params.TRAIN_FILE, params.COUNTERFACTUAL_FILE]
    record = start_record(config, inputs)

    from utils.spotter import fit, layers_to_read
    from utils.toxicity import WEIGHTS_NAME, save_probe, text_features

    tokenizer, model = load_tokenizer(ref), load_base(ref, config.quantization or "none").eval()
    layers = layers_to_read(model.config.get_text_config().num_hidden_layers)
    features = text_features(model, tokenizer, list(rows["text"]), layers)
    metrics = cross_validate(features, rows)
    with whole_folder(output, config.overwrite) as folder:
        save_probe(fit(features, rows["toxic"].to_numpy(), params.TOXICITY_C), folder / WEIGHTS_NAME)
        write_json(folder / "metrics.json", metrics)
        finish_record(record, folder, model=model_record(ref), layers=layers, counts={"rows": len(rows)})
    print(
        f"{metrics['texts']} texts, {metrics['toxic']:.0%} toxic; on rows left out AUROC {metrics['auroc']:.3f}, "
        f"sensitivity {metrics['sensitivity']:.2f}, specificity {metrics['specificity']:.2f}"
    )
    print(f"the classifier is in {output}; next: python testing/score.py --scorers toxicity")


if __name__ == "__main__":
    run_stage(main, parse_config(ToxicityConfig))
