#!/usr/bin/env bash
# ForgetFilter (arXiv 2312.12736, algorithm 1) on the embedded pairs: M0 is kept, M1 learns a noisy set, M2 is M1 after
# some steps on safe rows, what M2 has forgotten is dropped, and M0 learns what is left.
# In the size of the paper, on a CUDA box: recipes/forget_filter.yaml. For bias also
#   probe_bias.py --answers generation --input datasets/noisy/bbq_test.jsonl
# All strategies and rounds in one resumable command: recipes/interleave.py. Of Pile-detoxify and other plain texts the
# prompt is the first three words, and --scorers toxicity judges what a model writes after them.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

TRAIN=(python training/train.py --config recipes/noisy.yaml --validation datasets/noisy/test.jsonl --quantization none
    --report_to none --resume)

# 1. 100 unsafe, 50 safe and 50 task rows, whose polarity is known here; and other safe rows.
run python generate_data/mix_noisy.py --output datasets/noisy --overwrite

# 2. M1: eight passes, until most of it is known by heart. What was not learned cannot be forgotten.
run "${TRAIN[@]}" --input datasets/noisy/noisy.jsonl --epochs 8 --output models/noisy
run python training/merge.py --adapter_model models/noisy --output models/noisy_merged

# 3. M2, and the steps on the way.
run "${TRAIN[@]}" --base_model models/noisy_merged --input datasets/noisy/safe.jsonl --epochs 6 --keep_all --output models/safe

# 4. What was forgotten, by ROUGE-1 and by likelihood.
run python testing/forgetting.py --input datasets/noisy/noisy.jsonl --before models/noisy_merged --after models/safe/step-* \
    --output datasets/results/forgetting.csv --overwrite

# 5. Dropped: rows of a rate above 0.1.
run python generate_data/filter_forgotten.py --input datasets/noisy/noisy.jsonl --forgetting datasets/results/forgetting.csv \
    --output datasets/filtered --overwrite

# 6. M0 again, on what is left; and what it learned of the task, beside M1.
run "${TRAIN[@]}" --input datasets/filtered/kept.jsonl --epochs 8 --output models/filtered
for MODEL in noisy filtered; do
    run python testing/infer.py --adapter_model models/$MODEL --input datasets/noisy/test.jsonl \
        --output datasets/results/noisy_test_$MODEL.csv --max_new_tokens 96 --overwrite
    run python testing/score.py --scorers answer,refusal --input datasets/results/noisy_test_$MODEL.csv \
        --input_column prompt --reference_columns output --group_column polarity
done

printf '\nThese figures are a demo: 200 rows written for this repo. Figures on real data: benchmarks/RESULTS.md\n'
