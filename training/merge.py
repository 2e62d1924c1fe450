"""Merges an adapter into its base: a stand-alone model that loads with plain transformers.

    python training/merge.py
    python training/merge.py --adapter_model models/adapter --output models/merged

Reads  models/adapter/ from training/train.py; the base is the one in its run record
Writes models/merged/: model.safetensors, config, tokenizer, chat template, generation config, run.json

The adapter is added to the 16-bit weights of the base, in float32, and the sum is stored in 16 bits. A second run
with the same adapter changes nothing.

Next: python testing/infer.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import MergeConfig
from utils.helpers import UserError, parse_config, run_stage
from utils.models import ModelRef, load_base, load_tokenizer, model_record, resolve
from utils.records import RECORD_NAME, file_sha256, finish_record, read_json, start_record, whole_folder


def earlier_merge(output: Path) -> dict | None:
    """The run record of a merged model that stands in `output`, complete; None for anything else."""
    record = read_json(output / RECORD_NAME) if (output / RECORD_NAME).is_file() else {}
    return record if "adapter_sha256" in record and list(output.glob("*.safetensors")) else None


def merge(ref: ModelRef, folder: Path) -> None:
    """Saves base + adapter into `folder`, in the number type of the base."""
    import torch
    from peft import PeftModel

    stored = read_json(Path(ref.path) / "config.json").get("dtype") if Path(ref.path).is_dir() else None
    base = load_base(ref, "none", {"compute_dtype": "float32"})
    model = PeftModel.from_pretrained(base, ref.adapter).merge_and_unload(safe_merge=True)
    tokenizer = load_tokenizer(ref)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    dtype = torch.float16 if stored == "float16" else torch.bfloat16
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(config: MergeConfig) -> None:
    output = Path(config.output)
    ref = resolve(config.base_model, config.adapter_model)
    if output.resolve() == ref.adapter.resolve():
        raise UserError(f"--output {output} is the adapter itself: name another folder")
    if read_json(ref.adapter / "adapter_config.json")["peft_type"] != "LORA":
        raise UserError(f"{ref.adapter} is not a LoRA adapter: a prefix cannot be merged, use it with --adapter_model")
    identity = {
        "adapter_sha256": file_sha256(ref.adapter / "adapter_model.safetensors"),
        "model": model_record(ref),
    }
    earlier = earlier_merge(output)
    if earlier and all(earlier[key] == value for key, value in identity.items()):
        print(f"{output} already holds {ref.adapter} merged into {ref.name}: nothing to do")
        return
    record = start_record(config, [ref.adapter / "adapter_model.safetensors"])
    # an earlier merge may be replaced without asking: its adapter is the original
    with whole_folder(output, config.overwrite or earlier is not None) as folder:
        merge(ref, folder)
        finish_record(record, folder, **identity, prompt=ref.record.get("prompt"))
    print(f"{ref.adapter} merged into {ref.name}: {output}; next: python testing/infer.py --base_model {output}")


if __name__ == "__main__":
    run_stage(main, parse_config(MergeConfig))
