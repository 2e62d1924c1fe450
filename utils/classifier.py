"""Text classifiers by Hub id or folder: the probability of one label for every text."""

from functools import lru_cache

import numpy as np

from utils import params
from utils.helpers import UserError
from utils.models import resolve


@lru_cache(maxsize=2)
def _classifier(name: str):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        path = resolve(name).path
    except UserError as error:
        raise UserError(str(error).replace("--base_model", "classifier")) from error
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: no text classifier with safetensors weights there: {reason}") from error
    if found["missing_keys"]:  # transformers would draw a head at random
        raise UserError(f"{name} is no text classifier: its weights lack {sorted(found['missing_keys'])[0]}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    return model.eval(), tokenizer


def probabilities(texts: list[str], name: str, label: str) -> np.ndarray:
    """Probability of a label, float [texts]; NaN for an empty text.

    A classifier with several labels that are not exclusive (its configuration says so) is read by sigmoid, others by
    softmax. Texts are cut at the longest input of the model.

    Args:
        label: as in the configuration of the model, in any case, or its number; "": the second of two.

    Raises:
        UserError: there is no such label, or no classifier.
    """
    import torch

    model, tokenizer = _classifier(name)
    index = _label_index(model.config, label, name)
    found = np.full(len(texts), np.nan)
    order = sorted((n for n, text in enumerate(texts) if text.strip()), key=lambda n: -len(texts[n]))
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512) - 2)
    for start in range(0, len(order), params.CLASSIFIER_BATCH):
        batch = order[start : start + params.CLASSIFIER_BATCH]
        inputs = tokenizer(
            [texts[n] for n in batch], padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**inputs).logits.float()
        several = model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        found[batch] = (logits.sigmoid() if several else logits.softmax(dim=-1))[:, index].numpy()
    return found


def _label_index(config, label: str, name: str) -> int:
    labels = {str(text).lower(): int(n) for n, text in config.id2label.items()}
    if label.lower() in labels:
        return labels[label.lower()]
    if label.isdigit() and int(label) < len(labels):
        return int(label)
    if not label and len(labels) <= 2:
        return len(labels) - 1
    raise UserError(f"{name} has no label {label!r}: there are {', '.join(labels)}")
