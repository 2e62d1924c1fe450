"""What a cost model is to be compared with: classifiers that anybody makes in a minute, on the same training rows."""

import logging
from collections.abc import Callable

import numpy as np

from utils.cost_metrics import labels_of, responses_of
from utils.preferences import Judged

logger = logging.getLogger(__name__)

# (prompts, responses) -> log-odds of being unsafe, float [responses]
Scores = Callable[[list[str], list[str]], np.ndarray]


def baselines(train: list[Judged], only: str = "") -> dict[str, Scores]:
    """All of them, fitted on the labelled responses of the training rows; none where these are not of both kinds.

    Args:
        only: what stands in the names of those that are wanted.
    """
    labelled, unsafe = labels_of(train)
    if len(set(unsafe[labelled])) < 2:
        logger.warning("no simpler classifier can be fitted: the training rows are not labelled, all alike, or tested")
        return {}
    prompts, responses = (
        [t for t, there in zip(texts, labelled, strict=True) if there] for texts in responses_of(train)
    )
    makers = {
        "TF-IDF, prompt and response": lambda: _tfidf(lambda p, r: [f"{a}\n{b}" for a, b in zip(p, r, strict=True)]),
        "TF-IDF, response only": lambda: _tfidf(lambda p, r: r),
        "MiniLM, prompt and response": _minilm,
        "length only": _length,
    }
    return {name: _fit(make(), prompts, responses, unsafe[labelled]) for name, make in makers.items() if only in name}


def _fit(pieces, prompts: list[str], responses: list[str], unsafe: np.ndarray) -> Scores:
    features, classifier = pieces
    classifier.fit(features(prompts, responses), unsafe)
    return lambda p, r: classifier.decision_function(features(p, r))


def _tfidf(texts: Callable):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    return texts, make_pipeline(words, LogisticRegression(max_iter=2000))


def _minilm():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from utils.embedded import sentence_vectors

    def features(prompts: list[str], responses: list[str]) -> np.ndarray:
        return np.hstack([sentence_vectors(prompts), sentence_vectors(responses)])

    return features, make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))


def _length():
    from sklearn.linear_model import LogisticRegression

    def features(prompts: list[str], responses: list[str]) -> np.ndarray:
        return np.log([[1 + len(text.split())] for text in responses])

    return features, LogisticRegression()
