"""Table and figure of noisy and safe sessions in turns."""

from pathlib import Path

import numpy as np

from utils import params
from utils.report import markdown_table, with_ends
from utils.stats import Sampling, mean_interval

SAMPLING = Sampling(params.CONFIDENCE, params.BOOTSTRAP_RESAMPLES, params.SEED)


def mean(values: np.ndarray) -> dict:
    """The mean of a measure over rows, with its interval."""
    return mean_interval(values, SAMPLING)


def table_of(lines: list[dict]) -> str:
    """Harm and F1 of every strategy after each session, the base first.

    Args:
        lines: `strategy`, `session` (0: the base), `model`, `harm`, and `f1` by source.
    """
    sources = list(dict.fromkeys(source for line in lines for source in line["f1"]))
    rows = [
        [line["strategy"], str(line["session"]), line["model"], with_ends(line["harm"]),
         *(with_ends(line["f1"].get(source)) for source in sources)]
        for line in sorted(lines, key=lambda line: line["session"])
    ]  # fmt: skip
    return markdown_table(["strategy", "session", "model", "harm", *(f"F1 {source}" for source in sources)], rows)


def draw(lines: list[dict], path: Path) -> None:
    """Harm and F1 after each session, a line for each strategy; safe sessions are shaded."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    sources = list(dict.fromkeys(source for line in lines for source in line["f1"]))
    panels = [("harm", lambda line: line["harm"])]
    panels += [(f"F1 {source}", lambda line, source=source: line["f1"].get(source)) for source in sources]
    figure, axes = plt.subplots(len(panels), figsize=(7, 3 * len(panels)), layout="constrained", squeeze=False)
    for axis, (title, value) in zip(axes[:, 0], panels, strict=True):
        for strategy in dict.fromkeys(line["strategy"] for line in lines):
            points = [(line["session"], value(line)["mean"]) for line in lines
                      if line["strategy"] == strategy and value(line) and value(line)["mean"] is not None]  # fmt: skip
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=strategy)
        for session in range(2, max(line["session"] for line in lines) + 1, 2):
            axis.axvspan(session - 0.25, session + 0.25, color="#ddd", zorder=0)
        axis.set(xlabel="session (shaded: after the safe set)", ylabel=title)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
