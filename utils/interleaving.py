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


def measures_of(line: dict) -> dict[str, dict]:
    """What was measured of a model by the name of its column."""
    return line["harm"] | {f"F1 {source}": of for source, of in line["f1"].items()}


def table_of(lines: list[dict]) -> str:
    """Harm and F1 of every strategy after each session, the base first, each with the rows that it rests on.

    Args:
        lines: `strategy`, `session` (0: the base), `model`, `harm` by measure, and `f1` by source.
    """
    names = list(dict.fromkeys(name for line in lines for name in measures_of(line)))
    rows = [
        [
            line["strategy"],
            str(line["session"]),
            line["model"],
            *(_cell(measures_of(line).get(name)) for name in names),
        ]
        for line in sorted(lines, key=lambda line: line["session"])
    ]
    return markdown_table(["strategy", "session", "model", *names], rows)


def _cell(value: dict | None) -> str:
    return f"{with_ends(value)}, n {value['n']}" if value else "-"


def draw(lines: list[dict], path: Path) -> None:
    """Harm and F1 after each session, a line for each strategy; safe sessions are shaded."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys(name for line in lines for name in measures_of(line)))
    figure, axes = plt.subplots(len(panels), figsize=(7, 3 * len(panels)), layout="constrained", squeeze=False)
    for axis, name in zip(axes[:, 0], panels, strict=True):
        for strategy in dict.fromkeys(line["strategy"] for line in lines):
            found = [(line["session"], measures_of(line).get(name)) for line in lines if line["strategy"] == strategy]
            points = [(session, of["mean"]) for session, of in found if of and of["mean"] is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=strategy)
        for session in range(2, max(line["session"] for line in lines) + 1, 2):
            axis.axvspan(session - 0.25, session + 0.25, color="#ddd", zorder=0)
        axis.set(xlabel="session (shaded: after the safe set)", ylabel=name)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
