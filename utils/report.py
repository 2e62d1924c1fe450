"""What people look at: plots and tables."""

from pathlib import Path


def plot_losses(history: list[dict], path: Path) -> None:
    """Training and validation loss by optimiser step, and safety where it was measured: from a Trainer's history."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    drawn = [(("loss", "training"), ("eval_loss", "validation"))]
    titles = ["loss per supervised token (nats)"]
    if any("eval_safe_margin" in entry for entry in history):
        drawn.append(
            (("eval_safe_margin", "safe against unsafe"), ("eval_helpful_margin", "helpful against refusing"))
        )
        titles.append("margin per token (nats)")
    figure, axes = plt.subplots(
        len(drawn), figsize=(6, 4 * len(drawn)), layout="constrained", squeeze=False, sharex=True
    )
    for axis, curves, title in zip(axes[:, 0], drawn, titles, strict=True):
        for key, label in curves:
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=label)
        axis.set(xlabel="optimiser step", ylabel=title)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


_AUDIT_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What is trained</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .8rem; border-radius: 4px }
 mark { background: #bfe5c7 } table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: left }
 .fault { color: #a40000 } h2 { font-size: 1rem; margin: 2rem 0 .3rem }
</style>
<h1>What is trained</h1>
<p>{{ total }} training rows. <mark>Marked</mark> tokens are learned, the others are only read.</p>
<table><tr><th>fault<th>rows<th>share<th>limit<th></tr>
{% for f in findings %}<tr><td>{{ f.fault }}<td>{{ f.rows | length }}<td>{{ "%.1f%%" | format(100 * f.share) }}
<td>{{ "%.0f%%" | format(100 * f.limit) }}<td class="fault">{{ "stops training" if f.blocks }}</tr>
{% endfor %}</table>
{% for row in rows %}
<h2>Row {{ row.number }}: {{ row.trained }} of {{ row.tokens }} tokens</h2>
{% for fault in row.faults %}<div class="fault">{{ fault }}</div>{% endfor %}
<pre>{% for text, trained in row.pieces -%}
{% if trained %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}{% endfor %}</pre>
{% endfor %}</html>
"""


def audit_page(rows: list[dict], findings: list, total: int) -> str:
    """HTML with the findings of an audit and some rows, trained tokens marked (see utils/supervision.py)."""
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(_AUDIT_PAGE)  # text from data is data
    return page.render(rows=rows, findings=findings, total=total)


def mean_table(result: dict) -> str:
    """Markdown: the means of a comparison (utils/comparison.py)."""
    first = result["means"][result["compared_with"]]

    def cell(value: dict, rows: int) -> str:
        mean = "-" if value["mean"] is None else f"{value['mean']:.3g}"
        return mean if value["n"] == rows else f"{mean} (n {value['n']})"

    means = [
        [name, *[cell(value, first[m]["n"]) for m, value in row.items()]] for name, row in result["means"].items()
    ]
    arrows = {"higher": " (up)", "lower": " (down)", None: ""}
    header = ["system", *[m + arrows[of["better"]] for m, of in result["measures"].items()]]
    scored = ["rows scored", *[str(value["n"]) for value in first.values()]]
    return markdown_table(header, [*means, scored])


def difference_table(result: dict) -> str:
    """Markdown: the paired differences of a comparison."""
    rows = [
        [
            name,
            m,
            f"{d['mean']:+.3g}",
            "-" if d["low"] is None else f"{d['low']:+.3g} to {d['high']:+.3g}",
            "-" if d["p_holm"] is None else f"{d['p_holm']:.2g}",
            str(d["n"]),
            {True: "+", False: "-"}.get(d["better"], ""),
        ]
        for name, row in result["differences"].items()
        for m, d in row.items()
        if d["mean"] is not None
    ]
    text = f"Paired differences from {result['compared_with']}, {100 * result['sampling']['confidence']:g} % "
    text += "intervals; p corrected over measures (+ better, - worse, empty: not sure)\n\n"
    return text + markdown_table(["system", "measure", "difference", "interval", "p", "rows", ""], rows)


def latex_tables(result: dict) -> str:
    """LaTeX (booktabs): the means of a comparison, and the differences with their intervals."""
    import pandas as pd

    means = {name: {m: v["mean"] for m, v in row.items()} for name, row in result["means"].items()}
    means = pd.DataFrame(means).T.astype(float)
    differences = pd.DataFrame(
        {
            name: {
                m: "" if d["low"] is None else f"{d['mean']:+.3g} [{d['low']:+.3g}, {d['high']:+.3g}]"
                for m, d in row.items()
            }
            for name, row in result["differences"].items()
        }
    ).T
    return "\n".join(
        table.rename(index=_latex, columns=_latex).map(lambda cell: cell if isinstance(cell, float) else _latex(cell))
        .to_latex(escape=False, float_format="%.3g", na_rep="--", caption=caption)
        for table, caption in (
            (means, "Means"),
            (differences, _latex(f"Paired differences from {result['compared_with']}")),
        )
    )  # fmt: skip


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in str(text))


def with_ends(value: dict | None, form: str = ".3f") -> str:
    """A mean with its interval, where it has one."""
    if value is None or value["mean"] is None:
        return "-"
    ends = "" if value["low"] is None else f" ({value['low']:{form}} to {value['high']:{form}})"
    return f"{value['mean']:{form}}{ends}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table padded so that it also reads well in a terminal."""
    header, *rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
