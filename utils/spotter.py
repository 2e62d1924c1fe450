"""Finds unfair texts, and the words in them that a fair rewriting would change: two linear layers on hidden states.

A small chat model knows far more about bias than it can say: asked for the unfair words it fails, yet they can be read
off its middle layers. The text is put before the model twice, and the second reading is used, where every word is
seen with the whole text in view (echo embeddings, Springer et al. 2024, arXiv 2402.15449). The model is not changed.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import params
from utils.batches import by_length
from utils.edits import Span, join_words, words_of
from utils.helpers import UserError
from utils.loading import load_base, load_tokenizer
from utils.models import ModelRef, resolve_recorded
from utils.prompts import spot_messages
from utils.records import RECORD_NAME, read_json

WEIGHTS_NAME = "spotter.safetensors"


@dataclass(frozen=True)
class Probe:
    """A linear classifier: `features [..., features] @ weight [features] + bias` are log-odds."""

    weight: np.ndarray
    bias: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class Spotter:
    """A trained spotter: a probe for words and one for texts, the layers they read, and the model of these layers."""

    word: Probe
    text: Probe
    layers: list[int]
    ref: ModelRef
    quantization: str


def layers_to_read(depth: int) -> list[int]:
    """The layers at params.SPOT_DEPTHS of a model with `depth` layers; hidden state 0 is the embedding."""
    return sorted({max(1, round(share * depth)) for share in params.SPOT_DEPTHS})


def word_features(model, tokenizer, texts: list[str], layers: list[int]) -> list[np.ndarray]:
    """Hidden states of every word, averaged over its tokens in the second reading of the text.

    Returns:
        One float32 array [words, layers * hidden size] per text, words as in `utils.edits.words_of`.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path}: a spotter needs a tokenizer that knows where its tokens stand")
    encoded = []
    for text in texts:
        prompt = tokenizer.apply_chat_template(spot_messages(text), tokenize=False, add_generation_prompt=True)
        opening = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        second = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        encoded.append((opening + second["input_ids"], len(opening), second["offset_mapping"]))
    found: list[np.ndarray] = [np.empty(0)] * len(texts)
    with tqdm(total=len(texts), unit="text", desc="reading", disable=len(texts) < 2) as bar:
        for batch in by_length([len(ids) for ids, _, _ in encoded], params.SPOT_BATCH_TOKENS):
            states = _hidden_states(model, tokenizer, [encoded[i][0] for i in batch], layers)
            for row, i in enumerate(batch):
                _, start, offsets = encoded[i]
                tokens = states[row, start : start + len(offsets)]
                found[i] = np.zeros((len(words_of(texts[i])), states.shape[-1]), dtype=np.float32)
                for n, word in enumerate(words_of(texts[i])):
                    mine = _tokens_of(word, offsets)
                    if mine:  # a tokenizer may drop signs that it does not know
                        found[i][n] = tokens[mine].mean(0)
            bar.update(len(batch))
    return found


@torch.inference_mode()
def _hidden_states(model, tokenizer, rows: list[list[int]], layers: list[int]) -> np.ndarray:
    """[rows, tokens, layers * hidden size]; rows are padded on the right, where a causal model does not look."""
    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(model.device)
    # the backbone only: the output layer would cost a fifth more and is not needed
    with _no_deeper_than(model.base_model, max(layers)):
        states = model.base_model(**padded, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[layer] for layer in layers], dim=-1).float().cpu().numpy()


@contextlib.contextmanager
def _no_deeper_than(backbone, layer: int):
    """Within the block the layers after the next one are gone; the next stays, since the last state is normalised."""
    whole = getattr(backbone, "layers", None)
    if whole is None:
        yield
        return
    backbone.layers = whole[: layer + 1]
    try:
        yield
    finally:
        backbone.layers = whole


def _tokens_of(word: Span, offsets: list[Span]) -> list[int]:
    return [n for n, (start, end) in enumerate(offsets) if start < word[1] and word[0] < end]


def fit(features: np.ndarray, labels: np.ndarray, strength: float) -> Probe:
    """Logistic regression on standardised features, returned for raw ones.

    Args:
        features: [examples, features].
        labels: bool [examples]; where all are alike there is nothing to learn, and the log-odds are always 0.
        strength: inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    if labels.all() or not labels.any():
        return Probe(np.zeros(features.shape[1], dtype=np.float32), 0.0)
    mean, scale = features.mean(0), features.std(0) + 1e-3
    model = LogisticRegression(C=strength, max_iter=1000).fit((features - mean) / scale, labels)
    weight = model.coef_[0] / scale
    return Probe(weight.astype(np.float32), float(model.intercept_[0] - mean @ weight))


def fit_probes(features: list[np.ndarray], labels: list[np.ndarray]) -> tuple[Probe, Probe]:
    """The probe for words, and the one for texts, which reads the mean over the words.

    Args:
        features: per text, float [words, features].
        labels: per text, bool [words]: is the word changed? A text is unfair if one of its words is.
    """
    means = np.stack([text.mean(0) for text in features])
    unfair = np.array([label.any() for label in labels])
    word = fit(np.concatenate(features), np.concatenate(labels), params.SPOT_WORD_C)
    return word, fit(means, unfair, params.SPOT_TEXT_C)


def log_odds(word: Probe, text: Probe, features: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-odds of every word, and of the text: the mean of what the text probe says and of the worst word.

    Either alone ranks texts less well: the worst word is blind to tone, the mean over words to a single slip.
    """
    words = word(features)
    return words, float((text(features.mean(0)) + words.max()) / 2)


def save_spotter(word: Probe, text: Probe, path: Path) -> None:
    from safetensors.numpy import save_file

    probes = {"word": word, "text": text}
    tensors = {f"{name}_weight": probe.weight for name, probe in probes.items()}
    save_file(tensors | {f"{name}_bias": np.array([probe.bias]) for name, probe in probes.items()}, path)


def load_spotter(folder: Path) -> Spotter:
    """Reads a spotter and finds its model. Raises UserError if that model is gone or has changed."""
    from safetensors.numpy import load_file

    record = read_json(folder / RECORD_NAME)
    tensors = load_file(folder / WEIGHTS_NAME)
    if "text_weight" not in tensors:
        raise UserError(f"{folder} was made by an earlier version: train it again (training/train_spotter.py)")
    word, text = (Probe(tensors[f"{name}_weight"], float(tensors[f"{name}_bias"][0])) for name in ("word", "text"))
    ref = resolve_recorded(record["model"], folder)
    return Spotter(word, text, record["layers"], ref, record["config"]["quantization"] or "none")


@dataclass(frozen=True)
class Spot:
    """A span to change, and its most suspicious word."""

    start: int
    end: int
    worst: str

    @property
    def span(self) -> Span:
        return self.start, self.end


def spot(spotter: Spotter, texts: list[str], threshold: float, spread: float) -> list[list[Spot]]:
    """What to change in each text.

    Args:
        threshold: a text is changed if the probability, 0..1, that it is unfair is above this; 0 changes every text.
        spread: in such a text, all words above this probability are changed, and the worst one in any case.
    """
    from scipy.special import logit

    tokenizer, model = load_tokenizer(spotter.ref), load_base(spotter.ref, spotter.quantization).eval()
    found: list[list[Spot]] = []
    for text, features in zip(texts, word_features(model, tokenizer, texts, spotter.layers), strict=True):
        found.append([])
        if not len(features):
            continue
        scores, unfair = log_odds(spotter.word, spotter.text, features)
        if unfair <= logit(threshold):
            continue
        words = words_of(text)
        for start, end in join_words(text, (scores > logit(spread)) | (scores == scores.max())):
            inside = [n for n, word in enumerate(words) if start <= word[0] and word[1] <= end]
            first, last = words[max(inside, key=lambda n: scores[n])]
            found[-1].append(Spot(start, end, text[first:last]))
    return found
