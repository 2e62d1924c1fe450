"""Merges an adapter into its base: a stand-alone model that loads with plain transformers.

    python training/merge.py
    python training/merge.py --adapter_model models/adapter --output models/merged
    python training/merge.py --base_weights 16-bit --dtype float16    # no choice, and another number type
    python training/merge.py --push_to_hub me/my-model                # private; needs HF_TOKEN

Reads  models/adapter/ from training/train.py; the base is the one in its run record
Writes models/merged/: model.safetensors (in shards, if large), config, tokenizer, chat template, generation config,
       merge_report.json, run.json

An adapter that was trained on 4-bit weights can be merged into the 16-bit weights of the base or into the 4-bit ones,
written out. Both are built and compared with base and adapter as trained, token by token over rows that were held out:
the closer one is kept, and merge_report.json has the figures. A merge that is further off than --max_kl is refused,
and so is one that is off by half of what the adapter changes.
The sum is made in float32 and stored in 16 bits. A second run with the same adapter changes nothing.

Next: python testing/infer.py
"""

import logging
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import MergeConfig, RowsConfig
from utils.helpers import UserError, parse_config, run_stage
from utils.loading import load_tokenizer, stored_dtype
from utils.models import ModelRef, model_record, resolve
from utils.records import RECORD_NAME, file_sha256, finish_record, read_json, start_record, whole_folder, write_json
from utils.supervision import Example, encode, load_rows

logger = logging.getLogger(__name__)


def earlier_merge(output: Path) -> dict | None:
    """The run record of a merged model that stands in `output`, complete; None for anything else."""
    record = read_json(output / RECORD_NAME) if (output / RECORD_NAME).is_file() else {}
    return record if "adapter_sha256" in record and list(output.glob("*.safetensors")) else None


def rows_to_compare_on(config: MergeConfig, ref: ModelRef) -> list[Example]:
    """The rows that training/train.py held out, as long as its data are the same; else --input or the test rows."""
    recorded = ref.record.get("config", {})
    settings = RowsConfig(**{f.name: recorded[f.name] for f in fields(RowsConfig) if f.name in recorded})
    data = {params.ROOT / path: digest for path, digest in ref.record.get("inputs", {}).items()}
    held_out = ref.record.get("held_out", [])
    if not config.input and held_out and all(path.is_file() and file_sha256(path) == data[path] for path in data):
        names = ["input", *(["validation"] if settings.validation else [])]  # whatever else was read stands behind
        rows = sum(load_rows(replace(settings, **dict(zip(names, map(str, data), strict=False)))), [])
        rows = [row for row in rows if row["id"] in held_out]
    else:
        source = config.input or str(params.TEST_FILE)
        logger.info("base and merged model are compared on %s", source)
        if not config.input:  # the test rows have the default columns, --input those of the training rows
            settings = replace(settings, input_column=params.INPUT_COLUMN, output_column=params.REFERENCE_COLUMN)
        rows = sum(load_rows(replace(settings, input=source, validation=None, limit=None)), [])
    tokenizer = load_tokenizer(ref, side="right")
    examples = [encode(row, tokenizer, settings.prompt) for row in rows]
    return [example for example in examples if len(example.input_ids) <= params.MAX_LENGTH][: config.rows]


def choose(ref: ModelRef, config: MergeConfig, dtype) -> tuple:
    """The merged model that is closest to the trained one, and the report on all that were tried.

    Raises:
        UserError: even that one is too far off.
    """
    from utils import merging

    trained = merging.trained_model(ref)
    possible = merging.possible_bases(trained)
    if config.base_weights and config.base_weights not in possible:
        raise UserError(f"--base_weights {config.base_weights}: the adapter was trained on {possible[0]} weights")
    examples = rows_to_compare_on(config, ref)
    if not examples:
        raise UserError(f"no row to compare on is shorter than {params.MAX_LENGTH} tokens: give others with --input")
    found, built = {}, None
    for base in [config.base_weights] if config.base_weights else possible:
        built = base, merging.merge(ref, trained, base, dtype)
        found[base] = merging.difference(trained, built[1], examples)
        logger.info("%s: KL %.4f (at most %.3f), same token %.1f %%, loss %.4f (trained: %.4f)", merging.BASES[base],
                    found[base].kl_mean, found[base].kl_max, 100 * found[base].agreement, found[base].loss_merged,
                    found[base].loss_trained)  # fmt: skip
    best = min(found, key=lambda base: found[base].kl_mean)
    learned = merging.difference(trained, merging.bare(trained), examples)
    # an adapter that changed little is lost within an error that would be small for another one
    limit = min(config.max_kl, max(params.MERGE_MAX_SHARE * learned.kl_mean, params.MERGE_NOISE))
    report = {"kept": best, "limit": limit, "learned": asdict(learned)}
    report |= {base: asdict(value) for base, value in found.items()}
    if not found[best].kl_mean <= limit:
        raise UserError(
            f"the merged model is not the trained one: KL {found[best].kl_mean:.4f} nats on average, limit "
            f"{limit:.3g} (--max_kl {config.max_kl}; the adapter itself changes the base by {learned.kl_mean:.4f}): "
            f"try --dtype float32, or use the adapter (testing/infer.py --adapter_model {ref.adapter})"
        )
    return built[1] if best == built[0] else merging.merge(ref, trained, best, dtype), report


def save(model, ref: ModelRef, folder: Path, config: MergeConfig) -> None:
    tokenizer = load_tokenizer(ref)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, max_shard_size=config.max_shard_size)
    tokenizer.save_pretrained(folder)


def write_merge_card(folder: Path, ref: ModelRef, base: str, kept: dict) -> None:
    """The card of the adapter, and how close the merged model is to it; nothing for an adapter without a record."""
    from utils.card import REWRITER, write_card

    if "metrics" in ref.record:
        how = (
            f"Merged into the {base} weights of the base. Kullback-Leibler divergence from base and adapter "
            f"{kept['kl_mean']:.4f} nats a token (at most {kept['kl_max']:.3f}), the same likeliest token in "
            f"{kept['agreement']:.1%} of {kept['tokens']} tokens of {kept['rows']} held-out rows."
        )
        write_card(folder, ref.record, REWRITER, "merge", ["", how])


def push(folder: Path, repository: str) -> None:
    """Uploads the folder to a private repository of the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        url = api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder} is complete, but --push_to_hub {repository} failed ({reason}): is HF_TOKEN set?"
        ) from error
    print(f"uploaded: {url}")


def main(config: MergeConfig) -> None:
    output = Path(config.output)
    ref = resolve(config.base_model, config.adapter_model)
    if output.resolve() == ref.adapter.resolve():
        raise UserError(f"--output {output} is the adapter itself: name another folder")
    if read_json(ref.adapter / "adapter_config.json")["peft_type"] != "LORA":
        raise UserError(f"{ref.adapter} is not a LoRA adapter: a prefix cannot be merged, use it with --adapter_model")
    dtype = config.dtype or ("float16" if stored_dtype(ref) == "float16" else "bfloat16")
    identity = {
        "adapter_sha256": file_sha256(ref.adapter / "adapter_model.safetensors"),
        "model": model_record(ref),
        "dtype": dtype,
        "base_weights": config.base_weights,
        "max_shard_size": config.max_shard_size,
    }
    earlier = earlier_merge(output)
    same = earlier is not None and all(earlier.get(key) == value for key, value in identity.items())
    if same and earlier["kl_mean"] <= config.max_kl:
        print(f"{output} already holds {ref.adapter} merged into {ref.name}: nothing to do")
    else:
        import torch

        record = start_record(config, [ref.adapter / "adapter_model.safetensors"])
        # an earlier merge may be replaced without asking: its adapter is the original
        with whole_folder(output, config.overwrite or earlier is not None) as folder:
            model, report = choose(ref, config, getattr(torch, dtype))
            save(model, ref, folder, config)
            write_json(folder / "merge_report.json", report)
            kept = report[report["kept"]]
            finish_record(record, folder, **identity, prompt=ref.record.get("prompt"), kl_mean=kept["kl_mean"])
            write_merge_card(folder, ref, report["kept"], kept)
        print(
            f"{ref.adapter} merged into {ref.name} ({report['kept']} weights; KL {kept['kl_mean']:.4f}, same token "
            f"{kept['agreement']:.1%}): {output}; next: python testing/infer.py --base_model {output}"
        )
    if config.push_to_hub:
        push(output, config.push_to_hub)


if __name__ == "__main__":
    run_stage(main, parse_config(MergeConfig))
