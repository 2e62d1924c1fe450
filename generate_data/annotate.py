"""Labels biased texts and rewrites them, by any OpenAI-compatible server, its Batch API, or a model in process.

    export OPENAI_API_KEY=...                                     # or a line in .env
    python generate_data/annotate.py                              # the 40 pilot texts
    python generate_data/annotate.py --input texts.csv --input_column text --dry_run      # what would it cost?
    python generate_data/annotate.py --input texts.csv --input_column text --max_cost 5
    python generate_data/annotate.py --input texts.csv --input_column text --engine batch # half the price, hours
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python generate_data/annotate.py --model my-model
    python generate_data/annotate.py --engine transformers --limit 5      # no server, no key: a weak annotator
    python generate_data/annotate.py --prompt labels-1,analysis-1 --limit 40      # which prompt is nearer to gold?

Reads  a table with one text per row, and the guideline datasets/annotation_guideline/guideline.md
Writes datasets/annotated/<input>.csv: every input column, and what the prompt asks for: bias, toxicity, sentiment,
       harm, target, biased_words (JSON list), debiased_text; then status, raw (an answer that could not be used),
       annotator, suspicious (signs of instructions to the annotator in the text)
       <output>.answers.jsonl: every answer, as it came; <output>.run.json: settings, counts, tokens, cost

Status  ok          labelled and rewritten
        neutral     nothing to change: the text is copied
        refused, filtered, truncated, unparsable, api_error, empty (no text)    no labels: nothing is invented

An answer is kept the moment it comes and never asked for again: after Ctrl+C, a crash or --max_cost the same command
goes on, with any engine. `--overwrite` writes the output anew from the kept answers and asks only for what is missing.
`--samples 3 --temperature 0.7` asks three times, takes the majority and says how far the samples disagree;
`--canaries 20` plants instructions in twins of 20 rows and reports how many the annotator obeyed. The embedded 135M
model (--engine transformers) shows that the stage works; its labels are not worth training on.

Rows of one status can be asked again with other settings from a file that holds only them.

Next: python training/train.py --input datasets/annotated/<input>.csv, or python generate_data/agreement.py
"""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.agreement import against_gold
from utils.annotation import (
    FAILED,
    SCALES,
    Annotator,
    annotate_samples,
    ask_all,
    cells,
    first_answers,
    output_columns,
    plant_canaries,
)
from utils.answers import Answers
from utils.configs import AnnotateConfig
from utils.data import content_id, read_rows, read_table, require_columns, room_for, unique, write_rows
from utils.engines import Ask, model_name, open_budget, open_engine
from utils.helpers import UserError, describe, parse_config, run_stage
from utils.injection import signs
from utils.pricing import say_estimate, say_spent
from utils.prompts import ANNOTATE_PROMPTS
from utils.records import check_output_file, finish_record, start_record, whole_file
from utils.report import markdown_table
from utils.tally import Tally

logger = logging.getLogger(__name__)

ALIASES = {
    "input_file_path": "input",
    "output_file_path": "output",
    "backup_output_file_path": (None, "every answer is kept beside the output as it comes"),
    "completions_model": "model",
}


@dataclass
class Source:
    """The input table, read anew in every pass: it need not fit into memory."""

    path: Path
    columns: list[str]
    rows: int
    config: AnnotateConfig

    def texts(self) -> Iterator[str]:
        return (row[self.config.input_column] for row in read_rows(self.path, self.config.limit))

    @property
    def carried(self) -> list[str]:
        """Input columns that stand in the output after the id."""
        return [name for name in self.columns if name != "id"]

    def with_ids(self) -> Iterator[tuple[str, dict[str, str]]]:
        rows = (read_rows(self.path, self.config.limit) for _ in range(2))
        ids = unique(row.get("id") or content_id(row[self.config.input_column]) for row in next(rows))
        return zip(ids, next(rows), strict=True)


def open_source(config: AnnotateConfig) -> Source:
    """Reads the input once from end to end, so that a broken row shows before anything is paid."""
    columns: dict[str, None] = {}
    count = 0
    for count, row in enumerate(read_rows(config.input, config.limit), 1):
        columns |= dict.fromkeys(row)
        require_columns(row, [config.input_column], f"{config.input}, row {count},", "--input_column")
    if config.group_column:
        require_columns(columns, [config.group_column], config.input, "--group_column")
    return Source(Path(config.input), list(columns), count, config)


def annotate_file(config: AnnotateConfig, source: Source, prompt: str, output: Path, engine: Ask | None) -> int:
    """Annotates with one prompt. Returns the exit code; without an engine it only says what there is to ask."""
    annotator = Annotator(
        model=model_name(config),
        prompt=prompt,
        guideline=params.GUIDELINE_FILE.read_text(encoding="utf-8"),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        retries=config.retries,
    )
    answers = Answers(output.with_name(output.name + ".answers.jsonl"), annotator.settings(), config.overwrite)
    budget = open_budget(config, answers)
    left = first_answers(source.texts(), annotator, answers, config.samples)
    estimate = say_estimate(left.requests, left.prompt_chars, left.answer_chars, budget)
    if engine is None:
        more = f"; {config.canaries * config.samples} more for canaries" if config.canaries else ""
        print(f"{prompt}: {estimate}{more}; answers that do not fit are asked again, {config.retries} times at most")
        return 0
    hint = f", which uses the {len(answers)} kept answers; {left.requests} are to ask"
    check_output_file(output, [source.path, config.gold, config.prices], config.overwrite, hint)
    logger.info("%d rows of %s by %s, %s (%s)", source.rows, source.path, annotator.model, estimate, describe(config))
    record = start_record(config, [source.path, params.GUIDELINE_FILE])

    totals = iter([left.requests])  # how many there are to ask again shows only while they are

    def ask(requests):
        return engine(requests, answers, budget, next(totals, None))

    errors = ask_all(source.texts, annotator, answers, config.samples, ask)
    canaries = plant_canaries(source.texts, annotator, answers, config, ask) if config.canaries else None
    answers.close()

    tally = Tally()
    with whole_file(output) as partial:
        write_rows(finished_rows(source, annotator, answers, errors, tally), header(source, annotator), partial)
        cost = {"usd": budget.spent(), "price": budget.price and vars(budget.price), "answers": len(answers)}
        cost["tokens"] = {side: answers.tokens(side) for side in ("in", "out")}
        results = {"annotator": annotator.model, "prompt": prompt}
        results |= {"servers": sorted(answers.servers), "models": sorted(answers.models)}
        # the record first: no table is without it
        finish_record(record, output, **results, **tally.summary(), cost=cost, canaries=canaries)
    print(f"{output}: {tally.sentence()}\n{tally.tables()}\n\n{say_spent(budget)}")
    if canaries:
        print(canaries["sentence"])
    return verdict(config, tally, errors)


def header(source: Source, annotator: Annotator) -> list[str]:
    """The columns of the output: id, those of the input, those of the annotation."""
    columns = output_columns(annotator.schema, source.config.samples, source.config.output_column)
    return ["id", *room_for(source.carried, ["id", *columns]), *columns]


def finished_rows(
    source: Source, annotator: Annotator, answers: Answers, errors: dict[str, str], tally: Tally
) -> Iterator[list[str]]:
    """The rows of the output, from the kept answers; counted in `tally` on the way."""
    config = source.config
    columns = output_columns(annotator.schema, config.samples, config.output_column)
    group = config.group_column or ("aspect" if "aspect" in source.columns else None)
    for row_id, given in source.with_ids():
        text = given[config.input_column]
        found = annotate_samples(text, annotator, answers, config.samples, errors)
        found["suspicious"] = " ".join(signs(text))
        tally.add(found, given.get(group, "") if group else "")
        yield [row_id, *(given.get(name, "") for name in source.carried), *cells(found, columns, config.output_column)]


def verdict(config: AnnotateConfig, tally: Tally, errors: dict[str, str]) -> int:
    """The exit code: 1 where too many rows have no usable answer. What a user has to look at is logged."""
    counts = tally.counts()
    failed = sum(counts[status] for status in FAILED)
    if tally.unchanged:
        logger.warning("%d rows are labelled biased and came back unchanged: not to be trained on", tally.unchanged)
    if counts["empty"]:
        logger.warning("%d rows hold no text", counts["empty"])
    if tally.flagged:
        logger.warning("%d rows hold signs of instructions to the annotator: see the column suspicious", tally.flagged)
    if counts["api_error"]:
        last = next(reversed(errors.values()), "")
        logger.warning(
            "%d rows met an API error, the last one: %s; --overwrite asks for those only", counts["api_error"], last
        )
    asked = counts.total() - counts["empty"]
    if failed > config.max_failed * asked:
        logger.warning("%d of %d rows have no usable answer: see the column raw", failed, asked)
        return 1
    return 0


def check_gold(config: AnnotateConfig, source: Source) -> None:
    """Refuses to compare prompts where there is nothing to compare with, before anything is paid."""
    gold = read_table(config.gold)
    require_columns(gold, ["id", *SCALES, params.REFERENCE_COLUMN], config.gold, "--gold")
    known = set(gold["id"])
    if not any(row_id in known for row_id, _ in source.with_ids()):
        raise UserError(
            f"--prompt {config.prompt} compares prompts with gold rows, and no row of {config.input} has its id in "
            f"{config.gold}: see --gold, or give one prompt"
        )


def compare_prompts(config: AnnotateConfig, outputs: dict[str, Path]) -> str:
    """A table of prompts against the gold rows with the same ids."""
    gold = {row["id"]: row for row in read_table(config.gold).to_dict("records")}
    rows = []
    for prompt, output in outputs.items():
        annotated = [row for row in read_table(output).to_dict("records") if row["id"] in gold]
        found = against_gold(annotated, [gold[row["id"]] for row in annotated], config.output_column)
        names = ("change", "bias", "toxicity", "sentiment", "harm", "copied", "changed", "chrf")
        values = ["" if found.get(name) is None else f"{found[name]:.3g}" for name in names]
        rows.append([prompt, f"{found['usable']}/{found['rows']}", *values])
    titles = ["prompt", "usable", "kappa, change or not", "bias", "toxicity", "sentiment", "harm"]
    return markdown_table([*titles, "biased, copied", "fair, changed", "chrF"], rows)


def main(config: AnnotateConfig) -> int:
    prompts = config.prompts()
    for prompt in prompts:
        if prompt not in ANNOTATE_PROMPTS:
            raise UserError(f"--prompt {prompt}: there are {', '.join(ANNOTATE_PROMPTS)}")
        own = output_columns(ANNOTATE_PROMPTS[prompt][1], config.samples, params.REFERENCE_COLUMN)
        if config.output_column in {"id", *own} - {params.REFERENCE_COLUMN}:
            raise UserError(f"--output_column {config.output_column}: the annotation has a column of that name")
        if config.canaries and "bias" not in own:
            raise UserError(f"--canaries plants demands for a label, and --prompt {prompt} asks for none")
    source = open_source(config)
    if len(prompts) > 1:
        check_gold(config, source)
    base = Path(config.output) if config.output else params.ANNOTATED_DIR / f"{source.path.stem}.csv"
    outputs = {prompt: base.with_stem(f"{base.stem}.{prompt}") if len(prompts) > 1 else base for prompt in prompts}
    engine = None if config.dry_run else open_engine(config)
    if config.engine == "transformers" and model_name(config) == params.BASE_MODEL:
        logger.warning("%s is a weak annotator: use it to try the pipeline, not to train on", params.BASE_MODEL)
    code = max(annotate_file(config, source, prompt, output, engine) for prompt, output in outputs.items())
    if len(prompts) > 1 and engine:
        print(f"\nagainst {config.gold}:\n" + compare_prompts(config, outputs))
    return code


if __name__ == "__main__":
    run_stage(main, parse_config(AnnotateConfig, ALIASES))
