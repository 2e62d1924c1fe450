"""What is the toxicity classifier of this repo worth on other people's texts? ToxiGen and HateCheck.

    python benchmarks/bench_toxicity.py                     # about 20 minutes on two cores

Two probes (training/train_toxicity.py): one trained on the embedded texts, the default, and one on four fifths of
ToxiGen's annotated texts. Beside each, TF-IDF with logistic regression on the same rows, and alt-profanity-check where
it is installed (pip install --no-deps alt-profanity-check; its weights are a pickle). Tested on the last fifth of
ToxiGen, split by a hash of the text, and on all of HateCheck: AUROC with 95 % bootstrap intervals, accuracy at one
half, the share of harmless identity mentions that are called toxic, and the accuracy in every functionality.
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from training.train_toxicity import embedded_rows
from utils import params
from utils.data import read_table
from utils.helpers import setup_process
from utils.report import markdown_table
from utils.toxicity import toxicity_of

HARMLESS = ("ident_neutral_nh", "ident_pos_nh")  # HateCheck's statements that name a group, neutral and positive


def in_last_fifth(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 5 == 0


def probe(work: Path, name: str, rows: pd.DataFrame | None) -> Path:
    """A trained probe, by the script."""
    folder = work / name
    command = [sys.executable, "training/train_toxicity.py", "--output", folder, "--overwrite"]
    if rows is not None:
        rows.assign(label=rows["toxic"].map({True: "toxic", False: "not"})).to_csv(work / f"{name}.csv", index=False)
        command += ["--input", work / f"{name}.csv"]
    subprocess.run([*map(str, command)], cwd=params.ROOT, check=True)
    return folder


def tf_idf(rows: pd.DataFrame):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(vectors, LogisticRegression(C=10, max_iter=1000)).fit(rows["text"], rows["toxic"])
    return lambda texts: model.predict_proba(texts)[:, 1]


def auroc(truth: np.ndarray, found: np.ndarray) -> str:
    from scipy.stats import bootstrap
    from sklearn.metrics import roc_auc_score

    def of_rows(rows):
        return roc_auc_score(truth[rows], found[rows])

    rows = np.arange(len(truth))
    interval = bootstrap(
        (rows,), of_rows, vectorized=False, n_resamples=1000, method="percentile", rng=0
    ).confidence_interval
    return f"{of_rows(rows):.3f} ({interval.low:.3f} to {interval.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=params.ROOT.parent / "shared" / "data")
    parser.add_argument("--work_dir", type=Path, default=params.MODELS_DIR / "bench_toxicity", help="for the probes")
    options = parser.parse_args()
    setup_process()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    toxigen = read_table(options.data_dir / "toxigen_annotated.jsonl")
    toxigen["toxic"] = toxigen["label"] == "hate"
    last = toxigen["text"].map(in_last_fifth)
    check = read_table(options.data_dir / "hatecheck.csv").rename(columns={"test_case": "text"})
    check["toxic"] = check["label_gold"] == "hateful"
    rows = {"embedded": embedded_rows(), "toxigen": toxigen.loc[~last, ["text", "toxic"]]}
    probes = {
        name: probe(options.work_dir, name, given if name == "toxigen" else None) for name, given in rows.items()
    }
    systems = {
        "probe, embedded texts (default)": lambda texts: toxicity_of(list(texts), str(probes["embedded"]), ""),
        "TF-IDF, embedded texts": tf_idf(rows["embedded"]),
        "probe, ToxiGen": lambda texts: toxicity_of(list(texts), str(probes["toxigen"]), ""),
        "TF-IDF, ToxiGen": tf_idf(rows["toxigen"]),
    }
    try:
        from profanity_check import predict_prob

        systems["alt-profanity-check"] = lambda texts: predict_prob(list(texts))
    except ModuleNotFoundError:
        print("alt-profanity-check is not installed")
    table, by_functionality = [], {}
    for name, system in systems.items():
        found = {part: np.asarray(system(frame["text"])) for part, frame in (("t", toxigen[last]), ("h", check))}
        truth = {"t": toxigen.loc[last, "toxic"].to_numpy(), "h": check["toxic"].to_numpy()}
        right = {part: (found[part] >= 0.5) == truth[part] for part in found}
        harmless = check["functionality"].isin(HARMLESS).to_numpy()
        table.append(
            [name]
            + [cell for part in found for cell in (auroc(truth[part], found[part]), f"{right[part].mean():.3f}")]
            + [f"{(found['h'][harmless] >= 0.5).mean():.3f}"]
        )
        by_functionality[name] = pd.Series(right["h"]).groupby(check["functionality"].to_numpy()).mean()
    print(f"\n{last.sum()} texts of ToxiGen, {len(check)} of HateCheck\n")
    header = ["system", "ToxiGen AUROC", "accuracy", "HateCheck AUROC", "accuracy", "harmless mentions called toxic"]
    print(markdown_table(header, table) + "\n")
    counts = check["functionality"].value_counts()
    print(
        markdown_table(
            ["functionality (hateful _h, not _nh)", "n", *by_functionality],
            [[f, str(counts[f]), *(f"{of[f]:.2f}" for of in by_functionality.values())] for f in sorted(counts.index)],
        )
    )


if __name__ == "__main__":
    main()
