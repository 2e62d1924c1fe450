"""Merges an adapter into its base: a stand-alone model that loads with plain transformers.

    python training/merge.py
    python training/merge.py --adapter_model models/adapter --output models/merged

Reads  models/adapter/ from training/train.py; the base is the one in its run record
Writes models/merged/: model.safetensors, config, tokenizer, chat template, generation config, run.json

The adapter is added to the 16-bit weights of the base, in float32, and the sum is stored in 16 bits. A second run
with the same adapter changes nothing.

Next: python testing/infer.py
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import MergeConfig
from utils.helpers import UserError, parse_config, run_stage
from utils.models import ModelRef, load_base, load_tokenizer, model_record, resolve
from utils.records import RECORD_NAME, file_sha256, finish_record, read_json, start_record, whole_folder

logger = logging.getLogger(__name__)


def already_merged(output: Path, adapter_sha256: str) -> bool:
    """Whether `output` is the complete result of merging this adapter."""
    record = output / RECORD_NAME
    return record.is_file() and read_json(record).get("adapter_sha256") == adapter_sha256


def merge(ref: ModelRef, folder: Path) -> None:
    """Saves base + adapter into `folder`."""
    import torch
    from peft import PeftModel

    base = load_base(ref, "none")
    dtype = base.dtype
    model = PeftModel.from_pretrained(base.float(), ref.adapter).merge_and_unload(safe_merge=True)
    # greedy unless asked otherwise; the pad token is the tokenizer's
    tokenizer = load_tokenizer(ref)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(dtype if dtype != torch.float32 else torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(config: MergeConfig) -> None:
    output = Path(config.output)
    ref = resolve(config.base_model, config.adapter_model)
    if read_json(ref.adapter / "adapter_config.json")["peft_type"] != "LORA":
        raise UserError(f"{ref.adapter} is not a LoRA adapter: a prefix cannot be merged, use it with --adapter_model")
    adapter_sha256 = file_sha256(ref.adapter / "adapter_model.safetensors")
    if already_merged(output, adapter_sha256):
        print(f"{output} already holds {ref.adapter} merged into {ref.name}: nothing to do")
        return
    # what an earlier merge wrote may be replaced without asking: the adapter is the original
    overwrite = config.overwrite or (output / RECORD_NAME).is_file()
    record = start_record(config, [ref.adapter / "adapter_model.safetensors"])
    with whole_folder(output, overwrite) as folder:
        merge(ref, folder)
        finish_record(
            record, folder, model=model_record(ref), adapter_sha256=adapter_sha256, prompt=ref.record.get("prompt")
        )
    print(f"{ref.adapter} merged into {ref.name}: {output}; next: python testing/infer.py --base_model {output}")


if __name__ == "__main__":
    run_stage(main, parse_config(MergeConfig))
