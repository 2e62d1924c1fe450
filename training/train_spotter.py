"""Teaches a spotter to find the words that a fair rewriting changes: a linear layer on a frozen language model.

    python training/train_spotter.py                                     # the embedded model and data: two minutes
    python training/train_spotter.py --input pairs.csv --input_column toxic --output_column neutral
    python training/train_spotter.py --base_model meta-llama/Llama-2-7b-chat-hf --quantization nf4    # a CUDA box

Reads  datasets/content_moderation/train.csv, or any pairs file: the words to find are those that the rewriting
       changes, so no annotation of words is needed; rows that stay as they are show what is fair
Writes models/spotter/: spotter.safetensors (some thousand numbers), metrics.json, run.json

A small model that must repeat a text in order to change three words of it learns to repeat. With a spotter the work is
cut in two: it puts brackets around what is unfair, and a model trained to fill brackets writes what goes into them.
The printed figures are of words in rows that the spotter was not trained on (cross-validation over rows).

Next: python training/train.py --prompt fill (testing/infer.py then uses models/spotter by itself)
"""

import logging
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import SpotterConfig
from utils.data import read_pairs
from utils.edits import changed_words
from utils.helpers import UserError, describe, parse_config, run_stage
from utils.models import load_base, load_tokenizer, model_record, resolve
from utils.records import check_output_folder, finish_record, start_record, whole_folder, write_json
from utils.report import markdown_table

logger = logging.getLogger(__name__)


def load_rows(config: SpotterConfig) -> tuple[list[dict], list[np.ndarray]]:
    """Rows, and for each word of their sources whether the rewriting changes it."""
    rows = read_pairs(config.input, config.input_column, config.output_column, config.limit)
    if not all(row["templated"] for row in rows):
        raise UserError(f"{config.input} holds no pairs: see --input_column and --output_column")
    labels = [np.array(changed_words(row["prompt"], row["completion"]), dtype=bool) for row in rows]
    changed = len({row["prompt"] for row, label in zip(rows, labels, strict=True) if label.any()})
    if changed < 2 * params.SPOT_FOLDS or all(label.all() for label in labels):
        raise UserError(f"{config.input}: {changed} of {len(rows)} rows change some words: too few to learn from")
    return rows, labels


def short_enough(rows: list[dict], labels: list[np.ndarray], tokenizer) -> tuple[list[dict], list[np.ndarray]]:
    """Without the texts that infer.py would leave unanswered."""
    lengths = [len(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]) for row in rows]
    kept = [i for i, length in enumerate(lengths) if length <= params.MAX_PROMPT_TOKENS]
    if len(kept) < len(rows):
        logger.warning("%d rows of more than %d tokens are left out", len(rows) - len(kept), params.MAX_PROMPT_TOKENS)
    return [rows[i] for i in kept], [labels[i] for i in kept]


def cross_validate(features: list[np.ndarray], labels: list[np.ndarray], sources: list[str]) -> dict:
    """Figures on rows left out, params.SPOT_FOLDS times over: ranking of words, and what each threshold finds."""
    from scipy.special import expit
    from sklearn.metrics import average_precision_score, roc_auc_score
    from sklearn.model_selection import GroupKFold

    from utils.spotter import fit

    x, y = np.concatenate(features), np.concatenate(labels)
    row_of = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    source_of = np.unique(sources, return_inverse=True)[1][row_of]  # one text with two rewritings stays together
    probability = np.zeros(len(y))
    for seen, unseen in GroupKFold(params.SPOT_FOLDS).split(x, y, source_of):
        weight, bias = fit(x[seen], y[seen])
        probability[unseen] = expit(x[unseen] @ weight + bias)
    unfair = np.array([row.any() for row in labels])
    highest = np.array([probability[row_of == n].max(initial=0) for n in range(len(labels))])
    return {
        "words": len(y),
        "to_change": float(y.mean()),
        "auc": roc_auc_score(y, probability),
        "average_precision": average_precision_score(y, probability),
        "row_auc": roc_auc_score(unfair, highest) if not unfair.all() else None,
        "thresholds": {
            str(threshold): {
                "precision": float(y[probability > threshold].mean()) if (probability > threshold).any() else None,
                "recall": float((probability[y] > threshold).mean()),
                "unfair_rows_found": float((highest[unfair] > threshold).mean()),
                "fair_rows_flagged": float((highest[~unfair] > threshold).mean()) if not unfair.all() else None,
            }
            for threshold in params.SPOT_THRESHOLDS
        },
    }


def print_metrics(metrics: dict) -> None:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    names = ("precision", "recall", "unfair_rows_found", "fair_rows_flagged")
    rows = [[t, *(cell(found[name]) for name in names)] for t, found in metrics["thresholds"].items()]
    print(markdown_table(["--spot_threshold", *(name.replace("_", " ") for name in names)], rows))
    print(
        f"{metrics['words']} words, {metrics['to_change']:.0%} to change; words ranked with AUC {metrics['auc']:.3f}, "
        f"average precision {metrics['average_precision']:.3f}; rows with AUC {cell(metrics['row_auc'])}"
    )


def main(config: SpotterConfig) -> None:
    output = Path(config.output)
    rows, labels = load_rows(config)
    check_output_folder(output, config.overwrite)
    ref = resolve(config.base_model, revision=config.revision)
    logger.info("training a spotter on %s (%s)", ref.name, describe(config))
    record = start_record(config, [Path(config.input)])

    from safetensors.numpy import save_file

    from utils.spotter import WEIGHTS_NAME, fit, layers_to_read, word_features

    tokenizer = load_tokenizer(ref)
    rows, labels = short_enough(rows, labels, tokenizer)
    model = load_base(ref, config.quantization or "none").eval()
    layers = layers_to_read(model.config.get_text_config().num_hidden_layers)
    sources = [row["prompt"] for row in rows]
    features = word_features(model, tokenizer, sources, layers)
    metrics = cross_validate(features, labels, sources)
    weight, bias = fit(np.concatenate(features), np.concatenate(labels))
    with whole_folder(output, config.overwrite) as folder:
        save_file({"weight": weight, "bias": np.array([bias], dtype=np.float32)}, folder / WEIGHTS_NAME)
        write_json(folder / "metrics.json", metrics)
        finish_record(record, folder, model=model_record(ref), layers=layers, counts={"rows": len(rows)})
    print_metrics(metrics)
    print(f"the spotter is in {output}; next: python training/train.py --prompt fill")


if __name__ == "__main__":
    run_stage(main, parse_config(SpotterConfig))
