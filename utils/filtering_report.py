"""The report on what a filter dropped: a table, a curve, and rows to read."""

from pathlib import Path

import jinja2
import pandas as pd

from utils import params
from utils.configs import FilterConfig


def write_page(
    folder: Path, said: list[str], table: tuple, frame: pd.DataFrame, curve: pd.DataFrame, config: FilterConfig
) -> None:
    """Writes report.html and curve.png.

    Args:
        said: findings in words.
        table: header and rows, none where it is not known what is unsafe.
        frame: rows with prompt, completion, answer (afterwards), polarity and forgotten.
        curve: see generate_data/filter_forgotten.py.
    """
    draw(curve, config, folder / "curve.png")
    by_rate = frame.dropna(subset="forgotten").sort_values("forgotten", kind="stable")
    near = (by_rate["forgotten"] - config.phi).abs().sort_values(kind="stable").index
    number = params.FILTER_READ
    shown = {
        "Most forgotten": by_rate.tail(number)[::-1],
        f"Nearest to phi = {config.phi:g}": by_rate.loc[near[:number]],
        "Least forgotten": by_rate.head(number),
    }
    shown = {title: rows.to_dict("records") for title, rows in shown.items()}
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)  # text from data is data
    html = page.render(said=said, header=table[0], rows=table[1], shown=shown)
    (folder / "report.html").write_text(html, encoding="utf-8")


def draw(curve: pd.DataFrame, config: FilterConfig, path: Path) -> None:
    """F1 by phi, or the share dropped where it is not known what is unsafe, for every model and signal."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    measure = "f1" if "f1" in curve else "dropped"
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    styles = {"rouge1": "-", "em": ":", "likelihood": "--"}
    colours = {model: f"C{n % 10}" for n, model in enumerate(dict.fromkeys(curve["model"]))}
    for (model, signal), rows in curve.groupby(["model", "signal"], sort=False):
        axis.plot(rows["phi"], rows[measure], styles[signal], color=colours[model], label=f"{model}, {signal}")
    axis.axvline(config.phi, color="#999", linewidth=0.8)
    axis.set(xlabel="phi", ylabel="F1 of finding unsafe rows" if measure == "f1" else "share dropped", ylim=(0, 1.02))
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What was forgotten</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: left; vertical-align: top }
 td { border-top: 1px solid #ddd; white-space: pre-wrap; overflow-wrap: anywhere } img { max-width: 100% }
</style>
<h1>What was forgotten</h1>
<ul>{% for line in said %}<li>{{ line }}{% endfor %}</ul>
{% if rows %}<table><tr>{% for name in header %}<th>{{ name }}{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}</table>{% endif %}
<img src="curve.png" alt="The curve over phi">
{% for title, rows in shown.items() %}<h2>{{ title }}</h2>
<table><tr><th>forgotten<th>polarity<th>prompt<th>what was learned<th>answer afterwards</tr>
{% for row in rows %}<tr><td>{{ "%.2f" | format(row.forgotten) }}<td>{{ row.polarity }}<td>{{ row.prompt }}
<td>{{ row.completion }}<td>{{ row.answer }}</tr>{% endfor %}</table>{% endfor %}
</html>
"""
