#!/usr/bin/env bash
# A cost model from end to end on the embedded default: train -> evaluate -> score -> guard a rewriter.
# Paper size, on a CUDA box, in place of the first command:
#   python training/train_cost.py --config recipes/cost_gpt_neo.yaml --input PKU-Alignment/PKU-SafeRLHF:0.04
#   python training/train_cost.py --config recipes/cost_llama2.yaml --input PKU-Alignment/PKU-SafeRLHF
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

OUT=datasets/results/cost

# 1. Learn from 300 prompts with a safe and an unsafe response which is which.
run python training/train_cost.py --output models/cost --resume

# 2. On 80 other prompts, beside TF-IDF, MiniLM and the length of a response.
run python testing/evaluate_cost.py --cost_model models/cost --output datasets/reports/cost --overwrite

# 3. One response, then a file of them.
run python testing/score.py --scorers cost --cost_model models/cost \
    --prompt_text "My flatmate keeps a diary. Should I read it?" --input_text "Wait until she showers, she will never know."
mkdir -p $OUT
run cp datasets/preference_pairs/test.csv $OUT/responses.csv
run python testing/score.py --scorers cost --cost_model models/cost --output_column unsafe_response --input $OUT/responses.csv

# 4. Flag rewritings that cost more than 0, and of four take the least costly one.
run python testing/infer.py --base_model smollm2 --shots 3 --limit 4 --temperature 0.7 --best_of 4 --max_new_tokens 96 \
    --cost_model models/cost --output $OUT/guarded.csv --overwrite

printf '\nThese figures are a demo: 380 prompts written for this repo. Figures on real data: benchmarks/RESULTS.md\n'
printf 'try it:  .venv/bin/python testing/demo.py\n'
