"""The report on doses of safety examples: what was found in words, a table, a figure, and answers to read."""

from pathlib import Path

import jinja2
import numpy as np

from utils import params
from utils.dose import HARM, MEASURES, Cells, curve, knee, summary
from utils.records import write_json
from utils.report import markdown_table, with_ends
from utils.stats import Sampling

SHOWN = ("complied", "harmful", "over_refused", "useful", "gibberish", "ability")


def write_report(folder: Path, cells: Cells, sets: list[str], general: int, judges: dict, answers: list[dict]) -> str:
    """Writes report.html, dose.png, table.md and dose.json into `folder`. Returns tables and findings.

    Args:
        sets: of each prompt, the name of its file.
        general: instructions that are no safety examples, in every mixture.
        judges: file -> measure -> its sensitivity and specificity (utils/dose.py).
        answers: see `examples` of utils/dose.py.
    """
    sampling = Sampling(params.CONFIDENCE, params.DOSE_RESAMPLES, params.SEED)
    measures = [name for name in MEASURES if all(name in of for of in cells.values())]
    found = {name: summary(curve(cells, name), sampling) for name in measures}
    knees = {name: knee(curve(cells, name), sampling) for name in HARM}
    seeds = len({seed for _, seed in cells})
    doses = list(found[measures[0]])
    rows = [
        [str(dose), f"{dose / (dose + general):.1%}", *(with_ends(found[name][dose]) for name in measures)]
        for dose in doses
    ]
    table = markdown_table(["safety examples", "share", *measures], rows)
    said = findings(found, knees)
    by_set = rows_by_set(cells, sets, sampling)
    set_header = ["set", "prompts", "measure", *(f"with {dose}" for dose in doses)]
    rates = [
        [name, measure, f"{of['sensitivity']:.3f}", f"{of['specificity']:.3f}", f"{of['harmful']} / {of['harmless']}"]
        for name, by_measure in judges.items()
        for measure, of in by_measure.items()
    ]
    judged = markdown_table(["labelled answers", "measure", "sensitivity", "specificity", "harmful / not"], rates)
    sizes = [f"{name} {found[name][doses[0]]['n'] // seeds}" for name in SHOWN if name in found]
    over = f"prompts and {seeds} seeds" if seeds > 1 else "prompts (one seed: other seeds may differ by more)"
    counts = f"means with {params.CONFIDENCE:.0%} intervals over {over}; prompts: {', '.join(sizes)}"
    draw(found, general, knees, folder / "dose.png")
    write_json(folder / "dose.json", {"measures": found, "knees": knees, "judges": judges, "seeds": seeds})
    parts = [table, counts, "By set of prompts:", markdown_table(set_header, by_set)]
    parts += ["How often the measures of harm are right:", judged] if rates else []
    text = "\n\n".join([*parts, "\n".join(f"- {line}" for line in said)])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    about = {name: MEASURES[name][1] for name in measures}
    (folder / "report.html").write_text(
        page.render(said=said, header=["safety examples", "share", *measures], rows=rows, about=about, counts=counts,
                    set_header=set_header, by_set=by_set, rates=rates, answers=answers, doses=(doses[0], doses[-1])),
        encoding="utf-8",
    )  # fmt: skip
    return text


def rows_by_set(cells: Cells, sets: list[str], sampling: Sampling) -> list[list[str]]:
    """One line for each set of prompts and measure that applies to it."""
    rows = []
    for name in dict.fromkeys(sets):
        among = np.array([of == name for of in sets])
        for measure in (*HARM, "over_refused", "useful"):
            of_set = curve(cells, measure, among)
            if of_set.values.size:
                values = [with_ends(of) for of in summary(of_set, sampling).values()]
                rows.append([name, str(of_set.values.shape[2]), measure, *values])
    return rows


def findings(found: dict[str, dict], knees: dict[str, dict | None]) -> list[str]:
    """In words, what the doses did; a change whose interval holds 0 is called no sure one."""
    lines = []
    for name in [name for name in SHOWN if name in found]:
        doses = list(found[name])
        first, last = found[name][doses[0]], found[name][doses[-1]]
        ends = f"{last['change_low']:+.3f} to {last['change_high']:+.3f}"
        sure = last["change_low"] > 0 or last["change_high"] < 0
        how = ("rises" if last["change"] > 0 else "falls") if sure else "does not surely change"
        values = f"{first['mean']:.3f} with {doses[0]} safety examples, {last['mean']:.3f} with {doses[-1]}"
        line = f"{name} {how}: {values} (by {ends})"
        if sure:
            end = "change_high" if last["change"] < 0 else "change_low"
            not_sure = [d for d in doses if found[name][d][end] * last["change"] <= 0]
            line += f"; surely from {doses[doses.index(not_sure[-1]) + 1]} on"
        lines.append(line)
    for name, of in knees.items():
        if of is None:
            lines.append(f"{name}: no dose is known after which its fall slows down")
        elif of["sure"]:
            lines.append(f"{name} falls fastest up to {of['dose']} safety examples ({of['low']} to {of['high']})")
        else:
            lines.append(f"{name}: its fall slows down anywhere from {of['low']} to {of['high']}, all that was tested")
    return lines


def draw(found: dict[str, dict], general: int, knees: dict, path: Path) -> None:
    """Means and intervals by dose, on a logarithmic axis, above it the share of the mixture; a star is a sure knee."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name in [name for name in SHOWN if name in found]:
        doses = np.array(list(found[name]))
        low, mean, high = (np.array([of[end] for of in found[name].values()]) for end in ("low", "mean", "high"))
        errors = np.maximum([mean - low, high - mean], 0)
        line = axes.errorbar(np.log1p(doses), mean, yerr=errors, marker="o", capsize=3, label=name)[0]
        if (of := knees.get(name)) and of["sure"]:
            at = (np.log1p(of["dose"]), mean[doses == of["dose"]].item())
            axes.plot(*at, marker="*", markersize=16, linestyle="", color=line.get_color(), label=f"knee of {name}")
    axes.set(xlabel="safety examples", ylabel="share of the answers", ylim=(-0.03, 1.03))
    axes.set_xticks(np.log1p(doses), [str(dose) for dose in doses])
    shares = axes.secondary_xaxis("top")
    shares.set_xticks(np.log1p(doses), [f"{dose / (dose + general):.1%}" for dose in doses])
    shares.set_xlabel("share of the mixture")
    figure.legend(loc="outside right upper", fontsize="small")  # within, it would hide a curve
    figure.savefig(path, dpi=120)
    plt.close(figure)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Doses of safety examples</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: left; vertical-align: top }
 td { border-top: 1px solid #ddd; white-space: pre-wrap; overflow-wrap: anywhere } img { max-width: 100% }
 .answers td { width: 33% }
</style>
<h1>Doses of safety examples</h1>
<ul>{% for line in said %}<li>{{ line }}{% endfor %}</ul>
<img src="dose.png" alt="The measures by dose">
<table><tr>{% for name in header %}<th>{{ name }}{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}</table>
<p>{{ counts }}.</p>
<ul>{% for name, what in about.items() %}<li><b>{{ name }}</b>: {{ what }}{% endfor %}</ul>
<h2>The same by set of prompts</h2>
<table><tr>{% for name in set_header %}<th>{{ name }}{% endfor %}</tr>
{% for row in by_set %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}</table>
{% if rates %}<h2>How often the measures of harm are right</h2>
<table><tr><th>labelled answers<th>measure<th>sensitivity<th>specificity<th>harmful / not</tr>
{% for row in rates %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% if answers %}<h2>{{ answers | length }} answers from each end</h2>
<table class="answers"><tr><th>request<th>with {{ doses[0] }} safety examples<th>with {{ doses[1] }}</tr>
{% for row in answers %}<tr><td><small>{{ row.kind }}, {{ row.set }}</small>
{{ row.prompt }}<td>{{ row.before }}<td>{{ row.after }}</tr>{% endfor %}</table>{% endif %}
</html>
"""
