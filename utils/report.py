"""What people look at: plots and tables."""

from pathlib import Path


def plot_losses(history: list[dict], path: Path) -> None:
    """Training and validation loss by optimiser step, from a Trainer's log history."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.set(xlabel="optimiser step", ylabel="loss per supervised token (nats)")
    axes.legend()
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


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table padded so that it also reads well in a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
