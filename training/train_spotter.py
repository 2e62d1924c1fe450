"""Teaches a spotter to find unfair texts and the words to change in them: linear layers on a frozen language model.

    python training/train_spotter.py                                     # the embedded model and data: two minutes
    python training/train_spotter.py --input pairs.csv --input_column toxic --output_column neutral
    python training/train_spotter.py --base_model meta-llama/Llama-2-7b-chat-hf --quantization nf4    # a CUDA box

Reads  datasets/content_moderation/train.csv, or any pairs file: the words to find are those that the rewriting
       changes, so no annotation of words is needed; rows that stay as they are show what is fair
Writes models/spotter/: spotter.safetensors (some thousand numbers), metrics.json, run.json

A small model that must repeat a text in order to change three words of it learns to repeat. With a spotter the work is
cut in two: it puts brackets around what is unfair, and a model trained to fill brackets writes what goes into them.
The printed figures are of rows that the spotter was not trained on (cross-validation over rows).

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
from utils.edits import changed_words, words_of
from utils.helpers import UserError, describe, parse_config, run_stage
from utils.loading import check_kind, load_base, load_tokenizer
from utils.models import model_record, resolve
from utils.records import check_output_folder, finish_record, start_record, whole_folder, write_json
from utils.report import markdown_table

logger = logging.getLogger(__name__)


def load_rows(config: SpotterConfig) -> tuple[list[dict], list[np.ndarray]]:
    """Rows, and for each word of their sources whether the rewriting changes it."""
    rows = read_pairs(config.input, config.input_column, config.output_column, config.limit)
    if not all(row["templated"] for row in rows):
        raise UserError(f"{config.input} holds no pairs: see --input_column and --output_column")
    rows = [row for row in rows if words_of(row["prompt"])]
    labels = [np.array(changed_words(row["prompt"], row["completion"]), dtype=bool) for row in rows]
    return rows, labels


def short_enough(rows: list[dict], labels: list[np.ndarray], tokenizer) -> tuple[list[dict], list[np.ndarray]]:
    """Without the texts that infer.py would leave unanswered."""
    lengths = [len(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]) for row in rows]
    kept = [i for i, length in enumerate(lengths) if length <= params.MAX_PROMPT_TOKENS]
    if len(kept) < len(rows):
        logger.warning("%d rows of more than %d tokens are left out", len(rows) - len(kept), params.MAX_PROMPT_TOKENS)
    return [rows[i] for i in kept], [labels[i] for i in kept]


def check(path: str, rows: list[dict], labels: list[np.ndarray]) -> None:
    """Is there enough to learn from? Raises UserError where there is not."""
    changed = len({row["prompt"] for row, label in zip(rows, labels, strict=True) if label.any()})
    if changed < 2 * params.SPOT_FOLDS or all(label.all() for label in labels):
        raise UserError(f"{path}: {changed} of {len(rows)} rows change some words, {2 * params.SPOT_FOLDS} are needed")
    if all(label.any() for label in labels):
        logger.warning("%s holds no fair text: whole texts cannot be judged, rewrite with --spot_threshold 0", path)


def cross_validate(features: list[np.ndarray], labels: list[np.ndarray], sources: list[str]) -> dict:
    """Figures on rows left out, params.SPOT_FOLDS times over: ranking of words, and what each threshold finds."""
    from scipy.special import expit
    from sklearn.metrics import average_precision_score, roc_auc_score
    from sklearn.model_selection import GroupKFold

    from utils.spotter import fit_probes, log_odds

    scores: list = [None] * len(labels)
    for seen, unseen in GroupKFold(params.SPOT_FOLDS).split(sources, groups=sources):  # one text stays on one side
        probes = fit_probes([features[i] for i in seen], [labels[i] for i in seen])
        for i in unseen:
            scores[i] = log_odds(*probes, features[i])
    y, unfair = np.concatenate(labels), np.array([label.any() for label in labels])
    probability = expit(np.concatenate([words for words, _ in scores]))
    text_probability = expit(np.array([text for _, text in scores]))
    return {
        "texts": len(unfair),
        "unfair": float(unfair.mean()),
        "words": len(y),
        "to_change": float(y.mean()),
        "auc": roc_auc_score(y, probability),
        "average_precision": average_precision_score(y, probability),
        "text_auc": roc_auc_score(unfair, text_probability) if not unfair.all() else None,
        "thresholds": {
            str(threshold): {
                "words_precision": share(y[probability > threshold]),
                "words_recall": share(probability[y] > threshold),
                "unfair_texts_found": share(text_probability[unfair] > threshold),
                "fair_texts_flagged": share(text_probability[~unfair] > threshold),
            }
            for threshold in params.SPOT_THRESHOLDS
        },
    }


def share(truths: np.ndarray) -> float | None:
    """Share of the given booleans that are true; None without any."""
    return float(truths.mean()) if len(truths) else None


def print_metrics(metrics: dict) -> None:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    names = ("words_precision", "words_recall", "unfair_texts_found", "fair_texts_flagged")
    rows = [[t, *(cell(found[name]) for name in names)] for t, found in metrics["thresholds"].items()]
    print(markdown_table(["probability above", *(name.replace("_", " ") for name in names)], rows))
    print("(of words: infer.py --spot_spread; of texts: infer.py --spot_threshold)")
    print(
        f"{metrics['words']} words, {metrics['to_change']:.0%} to change; words ranked with AUC {metrics['auc']:.3f}, "
        f"average precision {metrics['average_precision']:.3f}"
    )
    print(f"{metrics['texts']} texts, {metrics['unfair']:.0%} unfair; ranked with AUC {cell(metrics['text_auc'])}")


def main(config: SpotterConfig) -> None:
    output = Path(config.output)
    rows, labels = load_rows(config)
    check(config.input, rows, labels)
    check_output_folder(output, config.overwrite)
    ref = resolve(config.base_model, revision=config.revision)
    check_kind(ref, encoder_decoder=False)
    logger.info("training a spotter on %s (%s)", ref.name, describe(config))
    record = start_record(config, [Path(config.input)])

    from utils.spotter import WEIGHTS_NAME, fit_probes, layers_to_read, save_spotter, word_features

    tokenizer = load_tokenizer(ref)
    rows, labels = short_enough(rows, labels, tokenizer)
    check(config.input, rows, labels)
    model = load_base(ref, config.quantization or "none").eval()
    layers = layers_to_read(model.config.get_text_config().num_hidden_layers)
    sources = [row["prompt"] for row in rows]
    features = word_features(model, tokenizer, sources, layers)
    metrics = cross_validate(features, labels, sources)
    with whole_folder(output, config.overwrite) as folder:
        save_spotter(*fit_probes(features, labels), folder / WEIGHTS_NAME)
        write_json(folder / "metrics.json", metrics)
        finish_record(record, folder, model=model_record(ref), layers=layers, counts={"rows": len(rows)})
    print_metrics(metrics)
    print(f"the spotter is in {output}; next: python training/train.py --prompt fill")


if __name__ == "__main__":
    run_stage(main, parse_config(SpotterConfig))
