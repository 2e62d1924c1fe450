"""Shows what a model would be trained on, and stops where that is not what you meant. Trains nothing.

    python training/audit.py                                      # the embedded rows, as train.py would use them
    python training/audit.py --input pairs.csv --validation held_out.csv --base_model meta-llama/Llama-2-7b-chat-hf
    python training/audit.py --allow_faults duplicate,leak        # report these, but do not stop for them

Reads  what training/train.py reads, with the same flags; of the base only the tokenizer
Writes datasets/reports/audit/: audit.html (20 rows, trained tokens marked, faulty rows first) and audit.json

Looks for rows without a trained token, a lost end of turn, a prompt other than the one that infer.py writes, rows that
are too long, completions that break off or stand in the prompt, duplicates, contradictions, and validation prompts
among the training rows. A fault above its limit (utils/params.py) blocks: the exit code is 1, and training/train.py,
which does the same before its first step, does not start.

Next: python training/train.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils.configs import AuditConfig
from utils.helpers import parse_config, run_stage
from utils.loading import load_tokenizer
from utils.models import model_record, resolve
from utils.prompts import check_template
from utils.records import check_output_folder, finish_record, start_record, whole_folder
from utils.supervision import encode_all, findings, load_rows, write_audit


def main(config: AuditConfig) -> int:
    output = Path(config.output)
    rows = load_rows(config)
    check_output_folder(output, config.overwrite)
    check_template(config.prompt)
    ref = resolve(config.base_model, revision=config.revision)
    record = start_record(config, config.files())
    tokenizer = load_tokenizer(ref, side="right", style=config.prompt_style)
    train, validation = encode_all(*rows, ref, tokenizer, config)
    found = findings(train, config.allowed_faults())
    with whole_folder(output, config.overwrite) as folder:
        write_audit(folder, train, found, tokenizer, config.seed)
        counts = {"train": len(train), "validation": len(validation)}
        finish_record(record, folder, model=model_record(ref), counts=counts)
    for finding in found:
        if finding.rows:
            print(f"{'STOP ' if finding.blocks else '     '}{finding}")
    blocking = sum(finding.blocks for finding in found)
    print(
        f"{len(train)} training rows, {len(validation)} for validation, {blocking} faults over their limit: {output}"
    )
    return 1 if blocking else 0


if __name__ == "__main__":
    run_stage(main, parse_config(AuditConfig))
