"""Probability that a text is toxic: by the probe that this repo trains, by Detoxify, or by any text classifier.

The probe is a linear layer on hidden states of a frozen chat model, averaged over the words of a text (as the spotter
reads them: utils/spotter.py). It needs no download, and knows what the rows it was trained on show.
"""

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils import params
from utils.helpers import UserError
from utils.records import RECORD_NAME, file_sha256, read_json

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "toxicity.safetensors"
_known: dict[tuple[str, str], dict[str, float]] = {}  # by classifier and label: text -> probability


def toxicity_of(texts: list[str], name: str, label: str, sha256: str = "") -> np.ndarray:
    """Probability that each text is toxic, 0..1, float [texts]; NaN for an empty text (the probe: one without words).

    A text is read once, also where several files hold it, as those of several systems hold the same sources.

    Args:
        name: folder of the probe, `detoxify:` and a published name or a checkpoint file, or a Hub id or folder of a
            classifier.
        label: of such a classifier, the label that means toxic.
        sha256: of the checkpoint file, which is a pickle and could run code: no other file is opened.
    """
    known = _known.setdefault((name, label), {})
    different = [text for text in dict.fromkeys(texts) if text.strip() and text not in known]
    if name.startswith("detoxify:"):
        found = _by_detoxify(different, name.removeprefix("detoxify:"), sha256)
    elif is_probe(name):
        found = _by_probe(different, Path(name))
    else:
        from utils.classifier import probabilities

        found = probabilities(different, name, label)
    known.update(zip(different, found, strict=True))
    return np.array([known.get(text, np.nan) for text in texts], dtype=float)


def check(name: str) -> None:
    """Raises UserError where the classifier that this repo makes is asked for, and was not made."""
    if Path(name).absolute() == params.TOXICITY_DIR and not is_probe(name):
        raise UserError(f"--toxicity_model {name}: nothing there: python training/train_toxicity.py makes it")


def is_probe(name: str) -> bool:
    return (Path(name) / WEIGHTS_NAME).is_file()


def measured_quality(name: str) -> dict[str, float]:
    """What the probe was measured to be worth on rows it had not seen; nothing for other classifiers."""
    if not is_probe(name):
        return {}
    metrics = read_json(Path(name) / "metrics.json")
    return {"auroc": metrics["auroc"], "sensitivity": metrics["sensitivity"], "specificity": metrics["specificity"]}


def text_features(model, tokenizer, texts: list[str], layers: list[int]) -> np.ndarray:
    """Hidden states averaged over the words of a text, float32 [texts, features].

    Zeros for a text without words ("???").

    Of a long text the first params.TOXICITY_CHARS characters are read.
    """
    from utils.spotter import word_features

    found = word_features(model, tokenizer, [text[: params.TOXICITY_CHARS] for text in texts], layers)
    return np.stack([states.mean(0) if len(states) else np.zeros(states.shape[1], np.float32) for states in found])


def _by_probe(texts: list[str], folder: Path) -> np.ndarray:
    from scipy.special import expit

    if not texts:
        return np.empty(0)
    probe, layers, model, tokenizer = _probe(folder)
    features = text_features(model, tokenizer, texts, layers)
    return np.where(features.any(axis=1), expit(probe(features)), np.nan)


@lru_cache(maxsize=1)
def _probe(folder: Path):
    from safetensors.numpy import load_file

    from utils.loading import load_base, load_tokenizer
    from utils.models import resolve_recorded
    from utils.spotter import Probe

    record, tensors = read_json(folder / RECORD_NAME), load_file(folder / WEIGHTS_NAME)
    ref = resolve_recorded(record["model"], folder)
    model = load_base(ref, record["config"]["quantization"] or "none").eval()
    return Probe(tensors["weight"], float(tensors["bias"][0])), record["layers"], model, load_tokenizer(ref)


def save_probe(probe, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": probe.weight, "bias": np.array([probe.bias])}, path)


def _by_detoxify(texts: list[str], name: str, sha256: str) -> np.ndarray:
    detector = _detoxify(name, sha256)
    found = np.empty(len(texts))
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    for start in range(0, len(order), params.CLASSIFIER_BATCH):
        batch = order[start : start + params.CLASSIFIER_BATCH]
        found[batch] = np.atleast_1d(detector.predict([texts[n] for n in batch])["toxicity"])
    return found


@lru_cache(maxsize=1)
def _detoxify(name: str, sha256: str):
    try:
        from detoxify import Detoxify
        from detoxify.detoxify import MODEL_URLS
    except ModuleNotFoundError as error:
        raise UserError("--toxicity_model detoxify: pip install -r requirements-eval.txt") from error
    if name in MODEL_URLS:
        return Detoxify(checkpoint=str(_published(MODEL_URLS[name])))
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--toxicity_model detoxify:{name}: no such file, and no published model: {', '.join(MODEL_URLS)}"
        )
    if file_sha256(path) != sha256.lower():
        raise UserError(
            f"--toxicity_sha256 {sha256 or '(not given)'}: {path} is a pickle, which could run code, and its hash is "
            f"{file_sha256(path)}: give that if you trust the file"
        )
    return Detoxify(checkpoint=str(path))


def _published(url: str) -> Path:
    """A checkpoint of Detoxify's authors, downloaded once; its name holds the beginning of its SHA-256."""
    import torch

    path = params.MODELS_DIR / "detoxify" / url.rsplit("/", 1)[1]
    wanted = path.stem.rsplit("-", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s", url)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=wanted)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{url}: {error}") from error
    if not file_sha256(path).startswith(wanted):
        raise UserError(f"{path} is not what its authors published: delete it")
    return path
