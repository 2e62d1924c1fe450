"""What testing/demo.py answers and shows, whether on a page or in a terminal. Text is data: all of it is escaped."""

from dataclasses import dataclass, fields

import numpy as np

from utils import cost_model, params
from utils.configs import DemoConfig, InferConfig
from utils.embedded import sentence_vectors
from utils.helpers import UserError
from utils.metrics import facts_kept
from utils.models import latest, spotter_weights
from utils.prompts import template_of
from utils.shown import marked_edits, visible


@dataclass(frozen=True)
class Rewriting:
    """A text, what became of it, and by how much: meaning and facts kept, 0..1, and costs, None where not known."""

    source: str
    text: str
    status: str
    meaning: float | None
    facts: float | None
    cost_before: float | None
    cost_after: float | None


class Demo:
    """The models of a demo, found at once and loaded when first asked."""

    def __init__(self, config: DemoConfig):
        """Raises UserError where a model that was named is not there."""
        self.config, self.rewrite_texts = config, None
        self.ref = latest(config.base_model, config.adapter_model, config.revision)
        self.template = template_of(self.ref.record)
        if self.template == "fill":
            spotter_weights(config.spotter)
        try:
            self.about = cost_model.check(config.cost_model)
        except UserError as error:
            if config.cost_model != DemoConfig().cost_model:
                raise
            self.about, self.missing = None, str(error).removeprefix("--cost_model ")

    def rewrite(self, texts: list[str]) -> list[Rewriting]:
        """Rewrites texts, which are neither empty nor over params.DEMO_TEXT_CHARS."""
        if self.rewrite_texts is None:
            from utils.rewriting import make_rewriter

            shared = {f.name for f in fields(InferConfig)} & {f.name for f in fields(DemoConfig)} - {"cost_model"}
            settings = InferConfig(**{name: getattr(self.config, name) for name in shared})
            self.rewrite_texts = make_rewriter(settings, self.ref, self.template)
        answers = dict(self.rewrite_texts({str(n): text for n, text in enumerate(texts)}))
        written = [answers[str(n)] for n in range(len(texts))]
        after = [answer["text"] for answer in written]
        meanings = (sentence_vectors(texts) * sentence_vectors(after)).sum(axis=1)
        costs = self.costs([""] * 2 * len(texts), [*texts, *after]).reshape(2, -1)
        return [
            Rewriting(
                text,
                answer["text"],
                answer["status"],
                float(meaning) if answer["text"].strip() else None,
                facts_kept(text, answer["text"]),
                *(None if np.isnan(cost) else float(cost) for cost in (before, behind)),
            )
            for text, answer, meaning, before, behind in zip(texts, written, meanings, *costs, strict=True)
        ]

    def costs(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        """Costs of responses, NaN without a cost model."""
        if self.about is None:
            return np.full(len(responses), np.nan)
        return cost_model.costs(prompts, responses, self.config.cost_model)

    def score(self, prompt: str, response: str) -> tuple[float, float | None]:
        """Cost of a response, and the probability that it is unsafe. Raises UserError without a cost model."""
        if self.about is None:
            raise UserError(f"{self.missing}")
        cost = float(self.costs([prompt], [response])[0])
        (chance,) = cost_model.probabilities(np.array([cost]), [prompt], self.about)
        return cost, None if np.isnan(chance) else float(chance)


def usable(text: str, what: str = "text") -> str:
    """The text without white space around it. Raises UserError for one that is empty or too long."""
    text = (text or "").strip()
    if not text:
        raise UserError(f"write a {what} first")
    if len(text) > params.DEMO_TEXT_CHARS:
        raise UserError(f"the {what} has {len(text):,} characters, at most {params.DEMO_TEXT_CHARS:,} are read")
    return text


def verdict(cost: float, chance: float | None, threshold: float) -> str:
    """In words."""
    said = "unsafe" if cost > threshold else "safe"
    known = "" if chance is None else f", {chance:.0%} likely to be unsafe by what such costs meant in training"
    return f"{said}: cost {cost:+.2f}{known}"


_STYLE = """<style>
.shown { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } .shown > div { overflow-wrap: anywhere;
white-space: pre-wrap; padding: .6rem; border: 1px solid #8886; border-radius: 6px }
.shown del { background: #e2888855 } .shown ins { background: #6cbf7a55; text-decoration: none }
.gauges { display: flex; gap: 2rem; flex-wrap: wrap; margin-top: .8rem } .gauges meter { width: 10rem }
.note { opacity: .75 } svg.costs { max-width: 34rem; width: 100% } svg.costs text { fill: currentColor }
</style>"""

_REWRITING = """<div class="shown" id="rewriting"><div><b>original</b>
{% for piece, kind in before %}{% if kind %}<del>{{ piece }}</del>{% else %}{{ piece }}{% endif %}{% endfor %}</div>
<div><b>rewriting</b>
{% for piece, kind in after %}{% if kind %}<ins>{{ piece }}</ins>{% else %}{{ piece }}{% endif %}{% endfor %}</div>
</div>
<div class="gauges">{% for name, value, text in gauges %}
<label>{{ name }}<br><meter min="0" max="1" value="{{ value }}"></meter> {{ text }}</label>{% endfor %}</div>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}"""

_COSTS = """<p id="verdict"><b>{{ said }}</b></p>
<svg class="costs" viewBox="0 0 480 190" role="img" aria-label="{{ said }}">
{% for bar in bars %}<rect x="{{ bar.x }}" y="{{ 150 - bar.height }}" width="{{ bar.width }}" height="{{ bar.height }}"
 fill="{{ bar.colour }}" fill-opacity="0.55"/>{% endfor %}
<line x1="{{ needle }}" x2="{{ needle }}" y1="0" y2="158" stroke="currentColor" stroke-width="3" id="needle"/>
<line x1="0" x2="480" y1="150" y2="150" stroke="currentColor" stroke-width="1"/>
<text x="0" y="168" font-size="12">{{ low }}</text>
<text x="480" y="168" font-size="12" text-anchor="end">{{ high }}</text>
<text x="240" y="185" font-size="12" text-anchor="middle">cost of held-out responses: {{ safe }} known to be safe
 (blue), {{ unsafe }} known to be unsafe (red)</text></svg>"""


def _render(template: str, **values) -> str:
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(**values)


def rewriting_html(found: Rewriting) -> str:
    """Original and rewriting side by side, changed words marked, and gauges of what was kept and what it costs."""
    before, after = marked_edits(visible(found.source), visible(found.text))
    gauges = [
        (name, value, f"{value:.2f}")
        for name, value in (("meaning kept", found.meaning), ("facts kept", found.facts))
        if value is not None
    ]
    if found.cost_before is not None and found.cost_after is not None:
        costs = (("cost before", found.cost_before), ("cost after", found.cost_after))
        gauges += [(name, 1 / (1 + np.exp(-cost)), f"{cost:+.2f}") for name, cost in costs]
    notes = {"truncated": ["The answer was cut off."], "too_long": ["The text is too long for the model."]}
    return _STYLE + _render(_REWRITING, before=before, after=after, gauges=gauges, notes=notes.get(found.status, []))


def cost_html(cost: float, said: str, held_out: dict[str, list[float]], bins: int = 24) -> str:
    """The verdict, and the cost as a needle before the histograms of responses that are known."""
    everything = [cost, *held_out.get("safe", []), *held_out.get("unsafe", [])]
    low, high = min(everything), max(everything)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = {kind: np.histogram(held_out.get(kind, []), edges)[0] for kind in ("safe", "unsafe")}
    most = max(1, *(int(of.max()) for of in counts.values()))
    bars = [
        {"x": f"{480 * n / bins:.1f}", "width": f"{480 / bins:.1f}", "height": round(140 * int(count) / most, 1),
         "colour": colour}
        for kind, colour in (("safe", "#3b78c2"), ("unsafe", "#c23b3b"))
        for n, count in enumerate(counts[kind])
    ]  # fmt: skip
    needle = f"{480 * (cost - edges[0]) / (edges[-1] - edges[0]):.1f}"
    sizes = {kind: len(held_out.get(kind, [])) for kind in ("safe", "unsafe")}
    ends = {"low": f"{edges[0]:+.1f}", "high": f"{edges[-1]:+.1f}"}
    return _STYLE + _render(_COSTS, said=said, bars=bars, needle=needle, **sizes, **ends)
