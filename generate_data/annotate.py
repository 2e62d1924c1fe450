"""Labels biased texts and rewrites them, by any OpenAI-compatible server or by a model in process.

    export OPENAI_API_KEY=...                                     # or a line in .env
    python generate_data/annotate.py                              # the 40 pilot texts
    python generate_data/annotate.py --input texts.csv --input_column text --model gpt-4o-mini
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python generate_data/annotate.py --model my-model
    python generate_data/annotate.py --engine transformers --limit 5      # no server, no key: a weak annotator

Reads  a table with one text per row, and the guideline datasets/annotation_guideline/guideline.md
Writes datasets/annotated/<input>.csv: every input column, and bias, toxicity, sentiment, harm, target, biased_words
       (JSON list), debiased_text, status, raw (the answer, where it could not be used), annotator
       and <output>.run.json: settings, versions, counts, tokens

status is ok, neutral (bias is No: the text is copied), unparsable (no answer that fits the schema), refused or
truncated. Only ok and neutral rows have labels: nothing is invented. Finished rows are kept at once: after Ctrl+C, a
crash or an API error the same command continues, and asks only for what is missing.

The embedded 135M model (--engine transformers) shows that the stage works; its labels are not worth training on.

Next: python training/train.py --input datasets/annotated/<input>.csv
"""

import json
import logging
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import AnnotateConfig, GenerationConfig
from utils.data import make_room, read_table, require_columns, row_keys, with_ids, write_table
from utils.helpers import UserError, describe, parse_config, run_stage, set_seed
from utils.prompts import Annotation, annotate_messages, parse_annotation
from utils.records import Progress, file_sha256, finish_record, start_record

logger = logging.getLogger(__name__)

ALIASES = {
    "input_file_path": "input",
    "output_file_path": "output",
    "backup_output_file_path": (None, "progress is kept beside the output after every row"),
    "completions_model": "model",
    "prompt": (None, "the prompt is made from datasets/annotation_guideline/guideline.md"),
}

API_ERROR = {"status": "api_error"}
LABEL_COLUMNS = ["bias", "toxicity", "sentiment", "harm", "target", "status", "raw", "biased_words", "annotator"]

# asks a chat and returns (answer, finish reason, prompt tokens, answer tokens)
Ask = Callable[[list[dict[str, str]]], tuple[str, str, int, int]]


def connect(config: AnnotateConfig) -> Ask:
    """The engine as a function. Checks the key, or loads the model."""
    return _endpoint(config) if config.engine == "endpoint" else _in_process(config)


def _endpoint(config: AnnotateConfig) -> Ask:
    import openai
    from dotenv import load_dotenv

    load_dotenv(params.ROOT / ".env")
    for old in ("OPEN_AI_TOKEN", "OPEN_AI_KEY"):
        if os.environ.get(old) and not os.environ.get("OPENAI_API_KEY"):
            logger.warning("%s is an old name: set OPENAI_API_KEY", old)
            os.environ["OPENAI_API_KEY"] = os.environ[old]
    if not os.environ.get("OPENAI_API_KEY"):
        if not os.environ.get("OPENAI_BASE_URL"):
            raise UserError(
                "no annotator: set OPENAI_API_KEY (or OPENAI_BASE_URL for a server of your own), "
                "or add --engine transformers for the embedded model"
            )
        os.environ["OPENAI_API_KEY"] = "none"  # a local server asks for no key, the client does
    client = openai.OpenAI(timeout=config.timeout)
    schema = {"name": "annotation", "strict": True, "schema": Annotation.model_json_schema()}

    def ask(messages: list[dict[str, str]]) -> tuple[str, str, int, int]:
        try:
            reply = client.chat.completions.create(
                model=config.model,
                messages=messages,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                seed=config.seed,
                response_format={"type": "json_schema", "json_schema": schema},
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"the server refuses model {config.model} ({error.status_code}): check key and name, "
                "and that OPENAI_BASE_URL ends as the server wants it, usually in /v1"
            ) from error
        except openai.BadRequestError as error:
            if error.code == "content_filter":
                return str(error), "refused", 0, 0
            reason = " ".join(str(error.message).split())[:300]
            raise UserError(
                f"the server rejects the request ({reason}): it must take max_tokens, temperature, seed and a JSON "
                "schema; try another --model"
            ) from error
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise UserError(
                    "the account has no quota left: add credit, then run the same command again"
                ) from error
            return str(error), "api_error", 0, 0
        except openai.APITimeoutError as error:
            return str(error), "api_error", 0, 0
        except openai.APIConnectionError as error:
            raise UserError(f"no server at {client.base_url}: check OPENAI_BASE_URL and the network") from error
        except openai.APIError as error:
            return str(error), "api_error", 0, 0
        choice, usage = reply.choices[0], reply.usage
        reason = (
            "refused" if choice.message.refusal or choice.finish_reason == "content_filter" else choice.finish_reason
        )
        text = choice.message.refusal or choice.message.content or ""
        return text, reason, usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0

    return ask


def _in_process(config: AnnotateConfig) -> Ask:
    from utils.models import load_model, load_tokenizer, resolve

    ref = resolve(config.base_model, config.adapter_model, config.revision)
    logger.warning("%s is a weak annotator: use its output to try the pipeline, not to train on", ref.label)
    from utils.generation import generate

    set_seed(config.seed)
    tokenizer, model = load_tokenizer(ref), load_model(ref, config.quantization)
    settings = GenerationConfig(
        max_new_tokens=config.max_tokens, max_prompt_tokens=4096, temperature=config.temperature, batch_tokens=8192
    )

    def ask(messages: list[dict[str, str]]) -> tuple[str, str, int, int]:
        answer = next(generate(model, tokenizer, [messages], settings))
        return answer.text, "stop" if answer.status == "ok" else "length", answer.prompt_tokens, answer.tokens

    return ask


def annotate_one(ask: Ask, text: str, guideline: str, retries: int) -> dict:
    """Labels and rewriting of one text with a status, the raw answer where it could not be used, and token counts.

    An answer that does not fit the schema is asked for again with the validator's message.
    """
    messages = annotate_messages(text, guideline, secrets.token_hex(8))
    tokens_in = tokens_out = 0
    for _ in range(retries + 1):
        reply, reason, used_in, used_out = ask(messages)
        tokens_in, tokens_out = tokens_in + used_in, tokens_out + used_out
        counts = {"tokens_in": tokens_in, "tokens_out": tokens_out}
        if reason in ("refused", "api_error"):
            return {"status": reason, "raw": reply, **counts}
        try:
            labels = parse_annotation(reply).model_dump()
        except ValueError as error:
            status = "truncated" if reason == "length" else "unparsable"
            problem = " ".join(str(error).split())[:300]
            messages = [
                *messages[:2],
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"That does not fit: {problem}. Answer with the JSON object only."},
            ]
            continue
        neutral = labels["bias"] == "No"
        if neutral:
            labels |= {"debiased_text": text, "biased_words": []}
        return {"status": "neutral" if neutral else "ok", "raw": "", **labels, **counts}
    return {"status": status, "raw": reply, **counts}


def main(config: AnnotateConfig) -> int:
    source = Path(config.input)
    output = Path(config.output) if config.output else params.ANNOTATED_DIR / f"{source.stem}.csv"
    frame = read_table(source, config.limit)
    require_columns(frame, [config.input_column], source, "--input_column")
    frame = with_ids(make_room(frame, [*LABEL_COLUMNS, config.output_column]), config.input_column)
    guideline = params.GUIDELINE_FILE.read_text(encoding="utf-8")
    in_process = Path(config.adapter_model or config.base_model or params.BASE_MODEL).name
    annotator = config.model if config.engine == "endpoint" else f"{in_process} (in process, weak)"
    settings = {
        "annotator": annotator,
        "temperature": config.temperature,
        "guideline": file_sha256(params.GUIDELINE_FILE),
    }
    progress = Progress(output, {**settings, "column": config.input_column}, config.overwrite)
    record = start_record(config, [source, params.GUIDELINE_FILE])
    logger.info(
        "annotating %d rows of %s, %d already done (%s)", len(frame), source, len(progress.done), describe(config)
    )

    texts = list(frame[config.input_column])
    keys = row_keys(frame, config.input_column)
    missing = [
        (k, t) for k, t in zip(keys, texts, strict=True) if progress.done.get(k, API_ERROR)["status"] == "api_error"
    ]
    if missing:
        ask = connect(config)
        for position, (key, text) in enumerate(missing, 1):
            progress.add(key, **annotate_one(ask, text, guideline, config.retries))
            logger.info("%d/%d %s", position, len(missing), progress.done[key]["status"])

    results = [progress.done[key] for key in keys]
    unreached = sum(result["status"] == "api_error" for result in results)
    if unreached:
        last = next(result["raw"] for result in reversed(results) if result["status"] == "api_error")
        logger.warning(
            "%d of %d rows met an API error, the last one: %s; run the same command again to ask for those only",
            unreached,
            len(keys),
            " ".join(last.split())[:200],
        )
        return 1
    for name in LABEL_COLUMNS[:-2]:
        frame[name] = [r.get(name, "") for r in results]
    frame[params.BIASED_WORDS_COLUMN] = [json.dumps(r.get("biased_words", []), ensure_ascii=False) for r in results]
    frame[config.output_column] = [r.get("debiased_text", "") for r in results]
    frame["annotator"] = annotator
    counts = Counter(r["status"] for r in results)
    tokens = {side: sum(r.get(side, 0) for r in results) for side in ("tokens_in", "tokens_out")}
    finish_record(record, output, annotator=annotator, counts=dict(counts), **tokens)
    write_table(frame, output)
    progress.finish()

    failed = len(results) - counts["ok"] - counts["neutral"]
    print(
        f"{output}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()) + f" of {len(results)} rows"
    )
    if failed > config.max_failed * len(results):
        logger.warning("%d of %d rows have no usable answer: see the raw column", failed, len(results))
        return 1
    return 0


if __name__ == "__main__":
    run_stage(main, parse_config(AnnotateConfig, ALIASES))
