#!/usr/bin/env bash
# SR-LLM from end to end on the embedded default: annotate -> train -> merge -> infer -> score -> compare.
# A 135M model that must repeat a whole text learns to repeat it, so it is trained to write only what changes: a spotter
# puts brackets around the unfair parts. The paper's 7B model repeats the whole text: see recipes/sr_llm.yaml.
# `make demo` runs this with the project's Python first on the path. Each command is printed as you would type it.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

TEST=datasets/content_moderation/test.csv
OUT=datasets/results/demo
MODELS=models/demo

# 1. How a text becomes a training row. The embedded model is a weak annotator: this only shows the stage.
run python generate_data/annotate.py --engine transformers --limit 2 --retries 0 --max_tokens 200 --max_failed 1 \
    --output datasets/annotated/demo.csv --overwrite

# 2. Learn from the embedded training rows what to change and what to write there; make a stand-alone model of the latter.
run python training/train_spotter.py --output $MODELS/spotter --overwrite
run python training/train.py --prompt fill --output $MODELS/adapter --overwrite
run python training/merge.py --adapter_model $MODELS/adapter --output $MODELS/merged

# 3. Rewrite the test rows: the tuned model, the same base by prompt alone, and what needs no model.
run python testing/infer.py --input $TEST --base_model $MODELS/merged --spotter $MODELS/spotter --output $OUT/tuned.csv \
    --max_new_tokens 128 --overwrite
run python testing/infer.py --input $TEST --base_model smollm2 --output $OUT/prompted.csv --max_new_tokens 128 --overwrite
run python testing/infer.py --input $TEST --base_model smollm2 --shots 3 --output $OUT/few-shot.csv --max_new_tokens 128 --overwrite
for baseline in copy delete reference; do
    run python testing/infer.py --input $TEST --baseline $baseline --output $OUT/$baseline.csv --overwrite
done

# 4. The same 10 unfair texts about 18 groups each: is everyone's text mended alike? `copy` shows what the judge does.
GROUP_TEXTS=datasets/content_moderation/counterfactual.csv
run python testing/infer.py --input $GROUP_TEXTS --limit 180 --base_model $MODELS/merged --spotter $MODELS/spotter \
    --output $OUT/groups-tuned.csv --max_new_tokens 128 --overwrite
run python testing/infer.py --input $GROUP_TEXTS --limit 180 --baseline copy --output $OUT/groups-copy.csv --overwrite

# 5. Score, and compare with the prompted base, row by row. The toxicity classifier is made here, too.
run python training/train_toxicity.py --output $MODELS/toxicity --overwrite
run python testing/score.py --input $OUT/{prompted,few-shot,copy,delete,reference,tuned}.csv \
    --scorers meaning,overlap,facts,edits,toxicity --toxicity_model $MODELS/toxicity
run python testing/score.py --input $OUT/groups-{copy,tuned}.csv --scorers identity,toxicity --toxicity_model $MODELS/toxicity
run python testing/compare.py --inputs $OUT/{prompted,few-shot,copy,delete,reference,tuned}.scores.csv \
    --counterfactual copy=$OUT/groups-copy.scores.csv tuned=$OUT/groups-tuned.scores.csv \
    --title "Demo: 120 texts written for this repo" --output datasets/reports/demo --overwrite

printf '\nThese figures are a demo: 120 texts written for this repo. Figures on real data: benchmarks/RESULTS.md\n'
printf 'try it:  .venv/bin/python testing/infer.py --base_model %s/merged --spotter %s/spotter --input_text "..."\n' $MODELS $MODELS
printf 'model:   %s/merged\nanswers: %s/tuned.csv\nreport:  datasets/reports/demo/report.html\n' $MODELS $OUT
