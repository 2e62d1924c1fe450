"""One dataclass per stage: the types and help texts of its settings. Values come from utils/params.py only."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils import params


def setting(default: Any, help: str) -> Any:
    """A dataclass field with the help text that `--help` shows."""
    return field(default=default, metadata={"help": help})


def names(text: str) -> list[str]:
    """Names joined by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _assignments(text: str) -> list[tuple[str, str]]:
    """name=value, joined by commas; the value is empty where the sign is missing."""
    return [(name.strip(), value.strip()) for name, _, value in (part.partition("=") for part in names(text))]


def file_and_share(given: str) -> tuple[str, float]:
    """FILE:0.5 as (FILE, 0.5); FILE alone as (FILE, 1). Raises ValueError for a share that is none."""
    name, mark, share = given.rpartition(":")
    if not mark or not re.fullmatch(r"[0-9.]+", share):
        return given, 1.0
    if share.count(".") > 1 or not 0 < float(share) <= 1:
        raise ValueError(f"--input {given}: what stands after the colon is a share above 0, at most 1")
    return name, float(share)


def at_least(least: int, config: Any, *flags: str) -> None:
    """Raises ValueError for a setting that is given and less."""
    for flag in flags:
        value = getattr(config, flag)
        if value is not None and value < least:
            raise ValueError(f"--{flag} {value}: give {least} or more")


def above_0(config: Any, *flags: str) -> None:
    """Raises ValueError for a setting that is given and not above 0."""
    for flag in flags:
        value = getattr(config, flag)
        if value is not None and value <= 0:
            raise ValueError(f"--{flag} {value}: give a value above 0")


def check_phi(phi: float) -> None:
    """Raises ValueError for a limit of forgetting rates that drops everything, or nothing."""
    if not -1 <= phi < 1:
        raise ValueError(f"--phi {phi}: forgetting rates lie between -1 and 1")


def between_0_and_1(config: Any, *flags: str) -> None:
    """Raises ValueError for a setting that is 0, 1, or beyond."""
    for flag in flags:
        if not 0 < getattr(config, flag) < 1:
            raise ValueError(f"--{flag} {getattr(config, flag)}: give a share above 0 and below 1")


STYLE_HELP = "alpaca, or a template file (JSON); default: the chat template that the model comes with"


@dataclass
class TableConfig:
    """A stage that turns a table into something else."""

    limit: int | None = setting(None, "use only the first N rows")
    overwrite: bool = setting(False, "replace an output that is already there")


@dataclass
class RunConfig(TableConfig):
    """The same, with chance in it."""

    seed: int = setting(params.SEED, "seed of every shuffle, split and initialisation")


@dataclass
class ModelConfig:
    """Which model, and in what precision."""

    base_model: str | None = setting(None, f"folder or Hub id; '{params.BASE_MODEL}' is the embedded one")
    revision: str | None = setting(None, "commit or tag of a Hub model; recorded")
    quantization: Literal["nf4", "int8", "none"] | None = setting(
        None,
        "weights of the base: 4-bit, 8-bit or 16-bit; default: nf4 to train, as trained for an adapter, else none",
    )


@dataclass
class GenerationConfig:
    """How text is generated."""

    max_new_tokens: int = setting(params.MAX_NEW_TOKENS, "longest answer, in tokens")
    max_prompt_tokens: int = setting(params.MAX_PROMPT_TOKENS, "a longer prompt is left unanswered and counted")
    temperature: float = setting(params.TEMPERATURE, "0 is greedy")
    top_p: float = setting(params.TOP_P, "nucleus of the sampled distribution; needs a temperature above 0")
    top_k: int = setting(params.TOP_K, "sample among so many tokens; 0: all of the nucleus")
    num_beams: int = setting(params.NUM_BEAMS, "beams; as many times the work")
    batch_tokens: int = setting(params.BATCH_TOKENS, "prompt and answer tokens of rows that are written at once")

    def __post_init__(self):
        at_least(1, self, "max_new_tokens", "max_prompt_tokens", "num_beams", "batch_tokens")
        at_least(0, self, "temperature", "top_k")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p {self.top_p}: give a share above 0, at most 1")


@dataclass
class ServerConfig(ModelConfig):
    """Who is asked, and how: an OpenAI-compatible server, its Batch API, or a model in process."""

    adapter_model: str | None = setting(None, "folder of a trained adapter; its base is read from its run record")
    engine: Literal["endpoint", "batch", "transformers"] = setting(
        "endpoint", "an OpenAI-compatible server; its Batch API (half the price, hours); or a model in process"
    )
    model: str = setting(params.ANNOTATOR_MODEL, "model name asked for at the endpoint")
    timeout: float = setting(params.ASK_TIMEOUT, "seconds for one request")
    max_concurrency: int = setting(params.MAX_CONCURRENCY, "most requests under way; fewer where the server says so")
    max_cost: float | None = setting(None, "US dollars that this output may cost, earlier runs included")
    prices: str = setting(str(params.PRICE_FILE), "CSV with the US dollars per million tokens of each model")
    poll: float = setting(params.BATCH_POLL, "seconds between two looks at a batch")

    def __post_init__(self):
        at_least(1, self, "max_concurrency")
        above_0(self, "timeout", "max_cost", "poll")


@dataclass
class AskConfig(ServerConfig):
    """What an answer may be."""

    temperature: float = setting(params.ANNOTATE_TEMPERATURE, "0 is greedy")
    max_tokens: int = setting(params.ANNOTATE_MAX_TOKENS, "longest answer, in tokens")


@dataclass
class AnnotateConfig(AskConfig, RunConfig):
    input: str = setting(str(params.PILOT_FILE), "CSV, TSV, JSON or JSONL with the texts")
    output: str | None = setting(None, "CSV to write; default: datasets/annotated/<name of the input>.csv")
    input_column: str = setting(params.INPUT_COLUMN, "column that holds the text")
    output_column: str = setting(params.REFERENCE_COLUMN, "column for the benign rewriting")
    prompt: str = setting(
        params.ANNOTATE_PROMPT,
        "labels-1 (labels and rewriting), analysis-1 (what is unfair, then the rewriting; no labels) or rewrite-1 "
        "(the rewriting only); a,b compares them with --gold",
    )
    gold: str = setting(str(params.GOLD_FILE), "rows annotated by people, to compare with; used where their ids occur")
    samples: int = setting(
        params.SAMPLES, "answers per text; labels by majority, and a column that says how far they disagree"
    )
    canaries: int = setting(params.CANARIES, "so many texts are asked again with an instruction planted in them")
    group_column: str | None = setting(
        None, "column by which the rows are counted at the end; default: aspect, if there"
    )
    retries: int = setting(params.ANNOTATE_RETRIES, "further tries after an answer that does not fit the schema")
    max_failed: float = setting(params.MAX_FAILED, "share of failed rows above which the exit code is 1")
    dry_run: bool = setting(False, "say what there is to ask and what it may cost, and ask nothing")

    def __post_init__(self):
        super().__post_init__()
        at_least(0, self, "retries", "canaries")
        at_least(1, self, "samples", "max_tokens")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"--max_failed {self.max_failed}: give a share between 0 and 1")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"--samples {self.samples} of greedy answers are all the same: add --temperature 0.7")
        if len(set(self.prompts())) < len(self.prompts()):
            raise ValueError(f"--prompt {self.prompt}: a name stands there twice")

    def prompts(self) -> list[str]:
        return names(self.prompt)


@dataclass
class AgreementConfig:
    inputs: list[str] = field(
        default_factory=lambda: [str(params.ANNOTATED_DIR / "pilot.csv"), str(params.GOLD_FILE)],
        metadata={"help": "FILE or NAME=FILE, each an annotator of the same rows; or one file and --raters"},
    )
    raters: str | None = setting(None, "columns of one file, joined by commas, each an annotator")
    labels: str | None = setting(None, "columns to compare, joined by commas; default: the four labels, where present")
    key: str = setting("id", "column by which the rows of several files are matched")
    output: str | None = setting(None, "JSON to write; default: <first input>.agreement.json")
    confidence: float = setting(params.CONFIDENCE, "level of the intervals")
    resamples: int = setting(params.AGREEMENT_RESAMPLES, "bootstrap resamples of the rows")
    seed: int = setting(params.SEED, "seed of the bootstrap")

    def __post_init__(self):
        at_least(1, self, "resamples")
        between_0_and_1(self, "confidence")


@dataclass
class CounterfactualConfig(TableConfig):
    input: str = setting(str(params.TEMPLATE_FILE), "templates (base_id, kind, template), or a table of texts")
    output: str = setting(str(params.COUNTERFACTUAL_FILE), "CSV to write")
    input_column: str = setting(params.INPUT_COLUMN, "column with the texts, where the input holds no templates")
    terms: str = setting(str(params.TERMS_FILE), "CSV of groups: attribute, group, pronoun, forms joined by |")


@dataclass
class MixSafetyConfig(RunConfig):
    input: str = setting(str(params.GENERAL_FILE), "instructions with answers; all of them, or --limit")
    safety: list[str] = field(
        default_factory=lambda: [str(params.PAIRS_FILE)],
        metadata={"help": "safety examples: instructions with answers, or prompt and safe_response"},
    )
    output: str = setting(str(params.MIXED_DIR), "folder for the mixtures")
    safety_counts: str | None = setting(
        None, f"numbers of safety examples, joined by commas; default: {params.SAFETY_COUNTS}"
    )
    safety_shares: str | None = setting(None, "their shares of the mixture instead, e.g. 0,0.025,0.1")
    form: Literal["instruction", "question", "mixed"] = setting(
        params.SAFETY_FORM, "how safety examples ask; question and mixed need a column `question`"
    )
    evaluation: list[str] = field(
        default_factory=lambda: [str(params.SAFETY_TEST_FILE), str(params.PAIRS_TEST_FILE)],
        metadata={"help": "files that models will be tested on: what gives them away is left out"},
    )
    keep_leaks: bool = setting(False, "leave nothing out that gives an evaluation text away, only count it")

    def __post_init__(self):
        if self.safety_counts is not None and self.safety_shares is not None:
            raise ValueError("--safety_counts and --safety_shares say the same: leave one out")
        self.counts(1)

    def counts(self, general: int) -> list[int]:
        """Numbers of safety examples beside so many others. Raises ValueError where they cannot be read."""
        flag = "safety_counts" if self.safety_shares is None else "safety_shares"
        given = getattr(self, flag) if getattr(self, flag) is not None else params.SAFETY_COUNTS
        try:
            values = [int(part) if flag == "safety_counts" else float(part) for part in names(given)]
        except ValueError:
            values = []
        least_wrong = float("inf") if flag == "safety_counts" else 1
        if not values or not all(0 <= value < least_wrong for value in values):
            raise ValueError(f"--{flag} {given}: give whole numbers, or shares below 1, joined by commas")
        if flag == "safety_shares":
            values = [round(share / (1 - share) * general) for share in values]
        return sorted(set(values))


@dataclass
class MixNoisyConfig(RunConfig):
    unsafe: list[str] = field(
        default_factory=lambda: [str(params.PAIRS_FILE)], metadata={"help": "files with unsafe examples"}
    )
    safe: list[str] = field(
        default_factory=lambda: [str(params.PAIRS_FILE)],
        metadata={"help": "files with safe examples; may be the same"},
    )
    task: list[str] = field(
        default_factory=lambda: [str(params.GENERAL_FILE)],
        metadata={"help": "files with what is to be learned, each a part of the mixture"},
    )
    output: str = setting(str(params.NOISY_DIR), "folder for the files")
    size: int = setting(params.NOISY_SIZE, "rows of the noisy set")
    unsafe_share: float = setting(params.UNSAFE_SHARE, "share of unsafe ones among them")
    safe_size: int = setting(params.NOISY_SAFE_SIZE, "most rows for safety fine-tuning")
    test_size: int = setting(params.NOISY_TEST_SIZE, "most rows to test with")
    test_share: float = setting(params.NOISY_TEST_SHARE, "share of templates, prompts or passages held out for that")
    unsafe_labels: str = setting(params.UNSAFE_LABELS, "labels that mean unsafe, joined by commas; all others do not")
    bbq_metadata: str = setting("", "BBQ's additional_metadata.csv, which says which answer is the biased one")

    def __post_init__(self):
        at_least(1, self, "size", "safe_size", "test_size")
        between_0_and_1(self, "unsafe_share", "test_share")
        if not self.task:
            raise ValueError("--task names no file: a noisy set has something to learn in it")

    def sizes(self, size: int, lists: list[str]) -> dict[str, int]:
        """Rows of each list of `size` in all, as in the code of arXiv 2312.12736: the first one is the unsafe one."""
        unsafe, others = (  # 200 * 0.1 is 19.999...
            int(round(size * share, 6)) for share in (self.unsafe_share, (1 - self.unsafe_share) / (len(lists) - 1))
        )
        return {name: others if n else unsafe for n, name in enumerate(lists)}


@dataclass
class FilterConfig(RunConfig):
    input: str = setting(str(params.NOISY_FILE), "rows to filter: those that testing/forgetting.py measured")
    forgetting: str = setting(str(params.FORGETTING_FILE), "what testing/forgetting.py measured of them")
    output: str = setting(str(params.FILTERED_DIR), "folder for the rows kept and dropped, and the report")
    phi: float = setting(params.PHI, "rows of a higher forgetting rate are dropped")
    signal: Literal["rouge1", "em", "likelihood"] = setting(params.FORGETTING_SIGNAL, "by which rate")
    after: str | None = setting(None, "which of the models measured after, by its name there; default: the last one")
    others: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=FILE:COLUMN: scores of the same rows, the higher the worse, to compare with"},
    )
    confidence: float = setting(params.CONFIDENCE, "level of the intervals")
    resamples: int = setting(params.FILTER_RESAMPLES, "bootstrap resamples of the rows")

    def other_scores(self) -> dict[str, tuple[str, str]]:
        """File and column by name. Raises ValueError where one of them is missing."""
        found = {}
        for given in self.others:
            name, _, place = given.partition("=")
            path, _, column = place.rpartition(":")
            if not (name and path and column):
                raise ValueError(f"--others {given}: give NAME=FILE:COLUMN")
            found[name] = (path, column)
        return found

    def __post_init__(self):
        check_phi(self.phi)
        at_least(1, self, "resamples")
        between_0_and_1(self, "confidence")
        self.other_scores()


@dataclass
class SpotterConfig(ModelConfig, TableConfig):
    input: str = setting(str(params.TRAIN_FILE), "pairs: a text, and its rewriting")
    output: str = setting(str(params.SPOTTER_DIR), "folder for the spotter")
    input_column: str = setting(params.INPUT_COLUMN, "column with the text")
    output_column: str = setting(params.REFERENCE_COLUMN, "column with the rewriting")


@dataclass
class ToxicityConfig(ModelConfig, TableConfig):
    input: str = setting("", "labelled texts; default: the embedded pairs and counterfactual texts")
    output: str = setting(str(params.TOXICITY_DIR), "folder for the classifier")
    text_column: str = setting(params.TOXICITY_TEXT_COLUMN, "column with the text")
    label_column: str = setting(params.TOXICITY_LABEL_COLUMN, "column with its label")
    toxic_labels: str = setting(params.TOXICITY_TRUE, "labels that mean toxic, joined by commas; all others do not")


@dataclass
class HeldOutConfig(ModelConfig, RunConfig):
    """Which rows are held out, and how long they may be."""

    validation: str | None = setting(None, "validation rows; default: a seeded share of the training rows")
    validation_share: float = setting(params.VALIDATION_SHARE, "share of rows held out for validation")
    max_length: int = setting(params.MAX_LENGTH, "longest row in tokens; longer rows are dropped and counted")

    def __post_init__(self):
        between_0_and_1(self, "validation_share")


@dataclass
class RowsConfig(HeldOutConfig):
    """Which rows are learned from, and how they are put before the model."""

    input: str = setting(str(params.TRAIN_FILE), "training rows: pairs CSV, Alpaca JSON(L) or prompt-completion JSONL")
    input_column: str = setting(params.INPUT_COLUMN, "column with the text to rewrite, in a pairs file")
    output_column: str = setting(params.REFERENCE_COLUMN, "column with the rewriting, in a pairs file")
    prompt: str = setting(
        "rewrite", "template of utils/prompts.py: rewrite, rewrite-short, fill (with a spotter), or answer"
    )
    prompt_style: str | None = setting(None, STYLE_HELP)
    train_on_inputs: bool = setting(False, "loss on the prompt as well as on the completion")
    validation_limit: int | None = setting(None, "use only the first N rows of --validation")
    allow_faults: str = setting("", "faults of training/audit.py that do not stop training, joined by commas")

    def __post_init__(self):
        super().__post_init__()
        if unknown := self.allowed_faults() - set(params.AUDIT_LIMITS):
            raise ValueError(f"--allow_faults {', '.join(unknown)}: there are {', '.join(params.AUDIT_LIMITS)}")

    def allowed_faults(self) -> set[str]:
        return set(names(self.allow_faults))

    def files(self) -> list[Path]:
        style = self.prompt_style if str(self.prompt_style).endswith(".json") else None
        return [Path(path) for path in dict.fromkeys([self.input, self.validation, style]) if path]


@dataclass
class AuditConfig(RowsConfig):
    output: str = setting(str(params.AUDIT_DIR), "folder for the page and the figures")


@dataclass
class OptimiserConfig:
    """How weights are trained, whatever the kind of model."""

    resume: bool = setting(False, "go on from the last checkpoint of a run that was stopped or killed")
    seeds: str | None = setting(None, "several seeds, e.g. 0,1,2: a model each, and mean and spread of the loss")
    # optimisation
    lr: float = setting(params.LEARNING_RATE, "peak learning rate")
    lr_scheduler: str = setting(params.LR_SCHEDULER, "constant, linear, cosine, constant_with_warmup ...")
    warmup_ratio: float = setting(params.WARMUP_RATIO, "share of the steps in which the rate rises; from 1: steps")
    weight_decay: float = setting(params.WEIGHT_DECAY, "decoupled weight decay")
    optimizer: str = setting(params.OPTIMIZER, "any optimizer name of transformers, e.g. paged_adamw_32bit on CUDA")
    epochs: float = setting(params.EPOCHS, "passes over the data")
    max_steps: int = setting(-1, "stop after so many optimiser steps; -1: by epochs")
    batch_size: int = setting(params.BATCH_SIZE, "rows of a batch, in each process")
    eval_batch_size: int = setting(params.EVAL_BATCH_SIZE, "rows of a batch in evaluation")
    gradient_accumulation: int = setting(params.GRADIENT_ACCUMULATION, "batches per optimiser step")
    max_grad_norm: float = setting(params.MAX_GRAD_NORM, "gradients are clipped to this norm")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, slower")
    group_by_length: bool = setting(params.GROUP_BY_LENGTH, "put rows of like length into one batch")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = setting("bfloat16", "precision of the matrix products")
    # evaluation and checkpoints
    eval_steps: float = setting(params.EVAL_STEPS, "evaluate and save every so many steps; below 1: a share of all")
    logging_steps: int = setting(params.LOGGING_STEPS, "log the training loss every so many steps")
    patience: int = setting(
        params.EARLY_STOPPING_PATIENCE, "evaluations without a better loss before stopping; 0: never"
    )
    report_to: str = setting(
        params.REPORT_TO, "where curves go: tensorboard (in the output folder), wandb, trackio, none"
    )

    def __post_init__(self):
        super().__post_init__()
        above_0(self, "epochs", "batch_size", "eval_batch_size", "gradient_accumulation", "eval_steps", "lr")
        if self.eval_steps > 1 and self.eval_steps != int(self.eval_steps):
            raise ValueError(f"--eval_steps {self.eval_steps}: give whole steps, or a share of all below 1")
        if self.seeds is not None and not self.seed_list():
            raise ValueError(f"--seeds {self.seeds}: give different whole numbers, e.g. 0,1,2")

    def trackers(self) -> list[str]:
        return [name for name in names(self.report_to) if name != "none"]

    def seed_list(self) -> list[int]:
        """The seeds to train with; empty if --seeds cannot be read."""
        if self.seeds is None:
            return [self.seed]
        parts = self.seeds.split(",")
        return (
            [int(part) for part in parts] if all(p.isdigit() for p in parts) and len(set(parts)) == len(parts) else []
        )


@dataclass
class FinetuneConfig(OptimiserConfig, RowsConfig):
    """A model that writes is trained."""


@dataclass
class AdapterConfig:
    """Weights that are trained beside frozen ones; or all of them, as the stage's `method` says."""

    micro_batch_tokens: int = setting(
        params.MICRO_BATCH_TOKENS, "a batch goes through the model in parts of at most so many tokens: less memory"
    )
    lora_r: int = setting(params.LORA_R, "rank")
    lora_alpha: int = setting(params.LORA_ALPHA, "scale; the update is multiplied by alpha / r")
    lora_dropout: float = setting(params.LORA_DROPOUT, "dropout on the adapter's input")
    lora_targets: str = setting(params.LORA_TARGETS, "all-linear, or module names joined by commas")
    lora_bias: Literal["none", "all", "lora_only"] = setting(params.LORA_BIAS, "which biases are trained")
    # 4-bit details
    nf4_quant_type: Literal["nf4", "fp4"] = setting("nf4", "4-bit data type")
    nf4_double_quant: bool = setting(True, "quantise the quantisation constants too")

    def __post_init__(self):
        super().__post_init__()
        above_0(self, "micro_batch_tokens", "lora_r")
        if self.method == "full" and self.quantization in ("nf4", "int8"):
            raise ValueError(f"--method full cannot train {self.quantization} weights: add --quantization none")


@dataclass
class TrainConfig(AdapterConfig, FinetuneConfig):
    output: str = setting(str(params.ADAPTER_DIR), "folder for the adapter (or the model, with --method full)")
    method: Literal["lora", "prefix", "full"] = setting(params.METHOD, "what is trained")
    packing: bool = setting(False, "put several rows into one sequence; needs FlashAttention, so CUDA only")
    prefix_tokens: int = setting(params.PREFIX_TOKENS, "virtual tokens of --method prefix")
    safety_probe: str = setting(
        "", "prompts with a safe and an unsafe response: how likely they are is measured at each evaluation"
    )
    keep_safest: bool = setting(
        False, "keep the checkpoint that tells safe from unsafe best; --patience waits for a better one of these"
    )
    stop_on_drift: bool = setting(
        False, "end the run where the safe margin has fallen, with the best checkpoint before that"
    )
    keep_last: bool = setting(False, "keep the last weights, whatever the validation loss, and never stop early")
    keep_all: bool = setting(False, "keep the weights of every evaluation as well, in step-<n>/")

    def __post_init__(self):
        super().__post_init__()
        if self.keep_last and (self.keep_safest or self.stop_on_drift):
            raise ValueError("--keep_last keeps other weights than --keep_safest and --stop_on_drift: leave one out")
        if (self.keep_safest or self.stop_on_drift) and not self.safety_probe:
            raise ValueError("--keep_safest and --stop_on_drift go by --safety_probe FILE: add it")

    def files(self) -> list[Path]:
        return [*super().files(), *([Path(self.safety_probe)] if self.safety_probe else [])]


@dataclass
class CostConfig(AdapterConfig, OptimiserConfig, HeldOutConfig):
    input: list[str] = field(
        default_factory=lambda: [str(params.PAIRS_FILE)],
        metadata={"help": "judged responses (see utils/preferences.py): FILE, FILE:0.5 for half of it, or a Hub id"},
    )
    output: str = setting(str(params.COST_DIR), "folder for the cost model")
    objective: Literal["safe_rlhf", "binary", "regression"] = setting(
        params.COST_OBJECTIVE, "rank pairs and tell safe from unsafe; only tell; or predict a harmfulness from 0 to 4"
    )
    loss_type: Literal["sequence-wise", "token-wise"] = setting(
        params.COST_LOSS_TYPE, "the loss is taken at the last token, or at all from where two responses part"
    )
    regularization: float = setting(params.COST_REGULARIZATION, "times the mean square of the costs, in the loss")
    form: Literal["question", "conversation", "human", "chat"] = setting(
        params.COST_FORM, "how prompt and response are put before the model (see utils/cost.py)"
    )
    prompt_dropout: float = setting(
        params.COST_PROMPT_DROPOUT, "share of training rows learned without prompt, so that texts alone can be judged"
    )
    unsafe_labels: str = setting(params.UNSAFE_LABELS, "labels that mean unsafe, joined by commas; all others do not")
    normaliser: Literal["none", "running", "ema"] = setting(
        "none", "costs are normalised by a running mean and spread"
    )
    normalise_by: Literal["affine", "scale", "translate"] = setting("scale", "(x - mean) / std, x / std, or x - mean")
    normaliser_momentum: float = setting(params.NORMALISER_MOMENTUM, "of ema: the weight of what came before")
    method: Literal["lora", "full"] = setting(params.METHOD, "what is trained")
    max_length: int = setting(params.COST_MAX_LENGTH, "longest row in tokens; longer rows are dropped and counted")
    epochs: float = setting(params.COST_EPOCHS, "passes over the data")
    lr: float = setting(params.COST_LEARNING_RATE, "peak learning rate")
    batch_size: int = setting(params.COST_BATCH_SIZE, "rows of a batch, in each process; a pair is one row")

    def __post_init__(self):
        super().__post_init__()
        at_least(0, self, "regularization")
        between_0_and_1(self, "normaliser_momentum")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"--prompt_dropout {self.prompt_dropout}: give a share from 0 to below 1")
        useless = [
            name for name in ("loss_type", "regularization") if getattr(self, name) != getattr(type(self), name)
        ]
        if self.objective == "regression" and useless:
            raise ValueError(f"--objective regression takes no --{useless[0]}")
        self.files()

    def files(self) -> list[Path]:
        """Those inputs that are files."""
        names = [file_and_share(given)[0] for given in (*self.input, self.validation or "")]
        return [Path(name) for name in names if Path(name).is_file()]


@dataclass
class EvaluateCostConfig(RunConfig):
    cost_model: str = setting(str(params.COST_DIR), "folder of the cost model")
    input: list[str] = field(
        default_factory=lambda: [str(params.PAIRS_TEST_FILE)],
        metadata={"help": "judged responses that it was not trained on: files or Hub ids"},
    )
    output: str = setting(str(params.REPORTS_DIR / "cost"), "folder for figures and plots")
    unsafe_labels: str = setting(params.UNSAFE_LABELS, "labels that mean unsafe, joined by commas; all others do not")
    baselines: bool = setting(True, "also fit simpler classifiers on the training rows")
    train_file: list[str] = field(
        default_factory=list, metadata={"help": "rows for those; default: what the model was trained on"}
    )


@dataclass
class Seq2SeqConfig(FinetuneConfig):
    base_model: str | None = setting(params.SEQ2SEQ_BASE, "folder or Hub id of an encoder-decoder: T5, Flan-T5, BART")
    output: str = setting(str(params.SEQ2SEQ_DIR), "folder for the model")
    lr: float = setting(params.SEQ2SEQ_LEARNING_RATE, "peak learning rate")
    epochs: float = setting(params.SEQ2SEQ_EPOCHS, "passes over the data")

    def __post_init__(self):
        super().__post_init__()
        if self.prompt == "fill" or self.train_on_inputs or self.prompt_style:
            raise ValueError(
                "an encoder-decoder writes whole answers: leave --prompt fill, --prompt_style and "
                "--train_on_inputs out"
            )
        if self.quantization not in (None, "none"):
            raise ValueError(f"--quantization {self.quantization}: all weights are trained, in float32")


@dataclass
class MergeConfig:
    adapter_model: str = setting(str(params.ADAPTER_DIR), "folder of the adapter, written by training/train.py")
    base_model: str | None = setting(None, "only for an adapter without a run record: the base that it was trained on")
    output: str = setting(str(params.MERGED_DIR), "folder for the stand-alone model")
    base_weights: Literal["16-bit", "nf4"] | None = setting(
        None, "merge into these weights of the base; default: those with which the merged model is closer"
    )
    dtype: Literal["bfloat16", "float16", "float32"] | None = setting(
        None, "number type of the merged model; default: float16 if the base is, else bfloat16"
    )
    input: str | None = setting(None, "rows to compare on; default: those held out in training, else the test rows")
    rows: int = setting(params.MERGE_ROWS, "compare on so many rows")
    max_kl: float = setting(params.MERGE_MAX_KL, "refuse a merge that is further off, in nats a token on average")
    max_shard_size: str = setting(params.MAX_SHARD_SIZE, "size of a weights file above which it is split")
    push_to_hub: str | None = setting(None, "upload the result to this private repository of the Hub")
    overwrite: bool = setting(False, "replace an output that is already there")

    def __post_init__(self):
        at_least(1, self, "rows")
        above_0(self, "max_kl")


@dataclass
class InferConfig(GenerationConfig, ServerConfig, RunConfig):
    engine: Literal["transformers", "endpoint", "batch"] = setting(
        "transformers", "a model in process; an OpenAI-compatible server; or its Batch API (half the price, hours)"
    )
    input: str = setting(str(params.TEST_FILE), "CSV, TSV, JSON or JSONL; '-' reads one text per line from stdin")
    input_text: str | None = setting(None, "answer this one text and print the answer")
    output: str | None = setting(
        None,
        "CSV to write, or JSON for lists of instructions and outputs; default: datasets/results/<input>_<model>.csv",
    )
    input_column: str = setting(params.INPUT_COLUMN, "column that holds the text; a file with instructions needs none")
    output_column: str = setting(params.OUTPUT_COLUMN, "column for the answer")
    prompt: str | None = setting(
        None,
        "rewrite, rewrite-short, fill; answer: the text is what a user says; continue: it is where a text begins; "
        "default: the one the model was trained with, else rewrite",
    )
    prompt_style: str | None = setting(None, STYLE_HELP)
    shots: int = setting(params.SHOTS, "worked examples from --train_file in the prompt")
    spotter: str = setting(str(params.SPOTTER_DIR), "marks what is unfair for a model trained with --prompt fill")
    spot_threshold: float = setting(
        params.SPOT_THRESHOLD,
        "change a text that is unfair with more than this probability; 0: every text",
    )
    spot_spread: float = setting(
        params.SPOT_SPREAD,
        "in such a text change all words above this probability, and the worst one in any case",
    )
    train_file: str = setting(
        str(params.TRAIN_FILE), "pairs for --shots and --baseline delete, in --input_column and --reference_column"
    )
    reference_column: str = setting(
        params.REFERENCE_COLUMN, "column with the human rewriting, for --train_file and --baseline reference"
    )
    baseline: Literal["copy", "delete", "reference"] | None = setting(
        None, "no model: the source itself, the source without words learned from --train_file, the human rewriting"
    )
    cost_model: str | None = setting(None, "folder of a cost model: every answer gets its cost, and a flag")
    cost_threshold: float = setting(params.COST_THRESHOLD, "cost above which an answer is flagged")
    best_of: int = setting(
        params.BEST_OF, "write so many by chance, and take the least costly of those that keep the most facts"
    )

    def __post_init__(self):
        GenerationConfig.__post_init__(self)
        ServerConfig.__post_init__(self)
        at_least(1, self, "best_of")
        if self.best_of > 1 and (self.cost_model is None or self.temperature == 0 or self.engine != "transformers"):
            raise ValueError("--best_of wants --cost_model, a --temperature above 0, and a model in process")
        if self.cost_model is None and self.cost_threshold != params.COST_THRESHOLD:
            raise ValueError(f"--cost_threshold {self.cost_threshold} has no effect: add --cost_model")
        local = [name for name in ("base_model", "adapter_model", "quantization") if getattr(self, name) is not None]
        shaping = ("temperature", "top_p", "top_k", "num_beams", "best_of", "shots", "prompt", "prompt_style")
        useless = local + [name for name in shaping if getattr(self, name) != getattr(type(self), name)]
        if self.baseline and useless:
            raise ValueError(f"--baseline {self.baseline} uses no model: leave --{useless[0]} out")
        if self.engine != "transformers" and local:
            raise ValueError(f"--engine {self.engine} asks a server: name its model with --model, not --{local[0]}")
        if self.engine == "transformers" and self.model != params.ANNOTATOR_MODEL:
            raise ValueError(f"--model {self.model} is what a server calls a model: add --engine endpoint")
        if self.engine != "transformers":
            useless = ("num_beams", "top_p", "top_k", "max_prompt_tokens", "batch_tokens", "revision", "prompt_style")
            given = [name for name in useless if getattr(self, name) != getattr(type(self), name)]
            if given or self.prompt in ("fill", "continue"):
                raise ValueError(f"--engine {self.engine} takes no --{given[0] if given else 'prompt ' + self.prompt}")
        for flag in ("spot_threshold", "spot_spread"):
            if not 0 <= getattr(self, flag) <= 1:
                raise ValueError(f"--{flag} {getattr(self, flag)}: give a probability between 0 and 1")
        if self.prompt == "continue" and self.shots:
            raise ValueError(f"--shots {self.shots}: a text that is continued has no turns before it")
        if (self.top_p != 1 or self.top_k) and self.temperature == 0:
            raise ValueError("--top_p and --top_k have no effect on greedy decoding: add --temperature")


@dataclass
class DemoConfig(ModelConfig):
    """Of a page, or a conversation in the terminal."""

    adapter_model: str | None = setting(None, "folder of a trained adapter; its base is read from its run record")
    spotter: str = setting(str(params.SPOTTER_DIR), "marks what is unfair for a model trained with --prompt fill")
    cost_model: str = setting(str(params.COST_DIR), "folder of a cost model; without one there is nothing to score by")
    cost_threshold: float = setting(params.COST_THRESHOLD, "cost above which a text is called unsafe")
    cli: bool = setting(False, "talk in the terminal, with no page")
    host: str = setting(params.DEMO_HOST, "address to listen at; 0.0.0.0 lets others of the network in")
    port: int = setting(params.DEMO_PORT, "port of the page")
    upload_mb: int = setting(params.DEMO_UPLOAD_MB, "largest file that may be uploaded, in megabytes")
    upload_rows: int = setting(params.DEMO_UPLOAD_ROWS, "most rows of such a file")

    def __post_init__(self):
        at_least(1, self, "upload_mb", "upload_rows")


@dataclass
class ScoreConfig(ServerConfig):
    input: list[str] = field(
        default_factory=list,
        metadata={"help": "results files of testing/infer.py; default: the newest in datasets/results/"},
    )
    limit: int | None = setting(None, "use only the first N rows")
    seed: int = setting(params.SEED, "seed of the bootstrap and of the shuffled pairs")
    group_column: str = setting("", "also give the means by the values of this column")
    input_text: str | None = setting(None, "score this text alone, and write nothing")
    prompt_text: str = setting("", "with --input_text: what it responds to")
    scorers: str = setting(params.SCORERS, "names of files in testing/scorers/, joined by commas")
    input_column: str = setting(params.INPUT_COLUMN, "column with the source text")
    output_column: str = setting(params.OUTPUT_COLUMN, "column with the text to score")
    reference_columns: str = setting(
        params.REFERENCE_COLUMN, "human rewritings, joined by commas; the best one counts"
    )
    joint_parts: str = setting(params.JOINT_PARTS, "joint: columns that are multiplied")
    fluency_model: str | None = setting(None, f"fluency: whose perplexity; default: {params.BASE_MODEL}")
    bertscore_model: str = setting(params.BERTSCORE_MODEL, "bertscore: Hub id or folder")
    bertscore_layer: int | None = setting(None, "bertscore: layer to read, for a model that its library does not know")
    toxicity_model: str = setting(
        str(params.TOXICITY_DIR), "toxicity: the probe made here, detoxify:NAME, a Hub id or folder, or column:NAME"
    )
    toxicity_label: str = setting("", "toxicity: a classifier's label that means toxic; default: the second of two")
    toxicity_sha256: str = setting("", "toxicity: hash of a checkpoint of one's own for detoxify:FILE")
    cost_model: str = setting(str(params.COST_DIR), "cost: folder made by training/train_cost.py")
    cost_threshold: float = setting(params.COST_THRESHOLD, "cost: from where on a text is called unsafe")
    harmfulness_model: str = setting(
        str(params.HARMFULNESS_DIR), "harmfulness: folder made by training/train_cost.py --objective regression"
    )
    prompt_column: str = setting("", "cost, harmfulness: column with the prompt; default: prompt, if there is one")
    moderation_model: str = setting(params.MODERATION_MODEL, "moderation: model name at the service")
    moderation_threshold: float = setting(
        params.MODERATION_THRESHOLD, "moderation: score above which a text is flagged"
    )
    aspects: str = setting(params.JUDGE_ASPECTS, "judge: what is asked, joined by commas")
    wordings: int = setting(params.JUDGE_WORDINGS, "judge: so many wordings of each question, and how far they differ")
    guard_style: str = setting("", "guard: llama-guard, wildguard, shieldgemma or qwen3guard; default: by its name")
    guard_template: str = setting("", "guard: file with the form of a guard without a chat template")
    guard_policy: str = setting("", "guard: what ShieldGemma judges by")
    label_tokens: int = setting(
        params.LABEL_TOKENS, "judge, guard: longest answer that is one word; more for models that think first"
    )
    retries: int = setting(params.ANNOTATE_RETRIES, "judge: further tries after an answer that does not fit")
    trait_model: str = setting("", "style: a text classifier, Hub id or folder")
    trait_label: str = setting("", "style: the label whose probability is the trait; default: the second of two")

    def judged_aspects(self) -> list[str]:
        return names(self.aspects)

    def __post_init__(self):
        super().__post_init__()
        known = params.JUDGE_ASPECTS.split(",")
        if not self.judged_aspects() or set(self.judged_aspects()) - set(known):
            raise ValueError(f"--aspects {self.aspects}: there are {', '.join(known)}")
        at_least(0, self, "retries")
        if not 1 <= self.wordings <= params.JUDGE_MOST_WORDINGS:
            raise ValueError(f"--wordings {self.wordings}: give 1 to {params.JUDGE_MOST_WORDINGS}")
        if self.input_text is None and self.prompt_text:
            raise ValueError("--prompt_text is what --input_text responds to: give both")
        if self.input_text is not None and self.input:
            raise ValueError("--input_text is scored alone: leave --input out")


@dataclass
class ForgettingConfig(GenerationConfig, RunConfig):
    input: str = setting(str(params.NOISY_FILE), "rows that the model before was trained on")
    output: str = setting(str(params.FORGETTING_FILE), "CSV to write")
    before: str = setting(
        str(params.MODELS_DIR / "noisy_merged"), "the model that has just learned them: a folder, or a Hub id"
    )
    after: list[str] = field(
        default_factory=lambda: [str(params.MODELS_DIR / "safe")],
        metadata={"help": "the model after further training; of several, e.g. step-50 step-100, a curve"},
    )
    quantization: Literal["nf4", "int8", "none"] | None = setting(None, "as in testing/infer.py")
    prompt_style: str | None = setting(None, STYLE_HELP)
    signal: Literal["both", "likelihood", "rouge1"] = setting("both", "what is measured; likelihood writes nothing")
    group_column: str = setting("polarity", "column by which rates are shown")
    max_new_tokens: int = setting(params.FORGETTING_TOKENS, "longest answer, in tokens")
    confidence: float = setting(params.CONFIDENCE, "level of the intervals")
    resamples: int = setting(params.BOOTSTRAP_RESAMPLES, "bootstrap resamples of the rows")

    def __post_init__(self):
        super().__post_init__()
        at_least(1, self, "resamples")
        between_0_and_1(self, "confidence")

    def measured(self) -> tuple[str, ...]:
        return {"both": ("likelihood", "text"), "likelihood": ("likelihood",), "rouge1": ("text",)}[self.signal]


@dataclass
class ProbeConfig(ModelConfig, RunConfig):
    adapter_model: str | None = setting(None, "folder of a trained adapter; its base is read from its run record")
    input: list[str] = field(
        default_factory=list,
        metadata={"help": "files of BBQ, StereoSet, CrowS-Pairs or WinoBias; default: those in datasets/bias_probes/"},
    )
    output: str = setting(str(params.RESULTS_DIR), "folder for the results")
    answers: Literal["likelihood", "generation"] = setting(
        "likelihood", "the likeliest of the given answers; or, for BBQ, the one that the model writes"
    )
    chat: bool = setting(False, "put questions (of BBQ) as a user's turn, and not as plain text")
    prompt_style: str | None = setting(None, STYLE_HELP)
    instruction: str = setting("", "a sentence put after each question that is answered by --answers generation")
    all_unknowns: bool = setting(False, "BBQ: all wordings of unknown compete, not only that of the question")
    bbq_metadata: str = setting("", "BBQ's additional_metadata.csv, which says which answer is the biased one")
    compute_dtype: Literal["bfloat16", "float16", "float32"] | None = setting(
        None, "precision of the matrix products; default: as the adapter was trained, else bfloat16"
    )

    def __post_init__(self):
        if self.instruction and self.answers != "generation":
            raise ValueError("--instruction goes with --answers generation: nothing is said about given answers")
        if self.answers == "generation" and (self.chat or self.all_unknowns):
            raise ValueError(
                "--answers generation shows the three answers in a chat: leave --chat, --all_unknowns out"
            )


@dataclass
class AbilityConfig(ModelConfig, RunConfig):
    adapter_model: str | None = setting(None, "folder of a trained adapter; its base is read from its run record")
    tasks: str = setting(params.ABILITY_TASKS, "tasks by name, joined by commas")
    task_folder: str = setting(
        str(params.ABILITY_DIR), "folder with tasks of one's own, as the harness describes them"
    )
    data: list[str] = field(
        default_factory=list, metadata={"help": "TASK=FILE: local data of a task, with the columns that it reads"}
    )
    before: str = setting("", "CSV of an earlier result: differences from it, paired by question")
    output: str | None = setting(None, "CSV to write; default: datasets/results/ability_<model>.csv")
    batch_size: int = setting(params.ABILITY_BATCH, "rows that the harness runs at once")
    num_fewshot: int | None = setting(None, "worked examples before each question; default: as the task says")
    chat: bool = setting(False, "put questions as a user's turn, by the model's chat template")

    def __post_init__(self):
        if not self.task_names():
            raise ValueError("--tasks names no task")
        if wrong := set(self.local_data()) - set(self.task_names()):
            raise ValueError(f"--data {', '.join(sorted(wrong))}: not among --tasks {self.tasks}")
        if any(not path for path in self.local_data().values()):
            raise ValueError("--data: write TASK=FILE")
        if self.data and self.num_fewshot:
            raise ValueError(f"--num_fewshot {self.num_fewshot}: with --data an example might be the question itself")

    def task_names(self) -> list[str]:
        return names(self.tasks)

    def local_data(self) -> dict[str, str]:
        return dict(part.partition("=")[::2] for part in self.data)


@dataclass
class CompareConfig(RunConfig):
    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "two or more .scores.csv files, as FILE or NAME=FILE; the others are compared with the first"
        },
    )
    output: str = setting(str(params.REPORTS_DIR / "comparison"), "folder for the report")
    title: str = setting("Comparison", "title of the report")
    input_column: str = setting(params.INPUT_COLUMN, "column with the source text, as for score.py")
    output_column: str = setting(params.OUTPUT_COLUMN, "column with the text that was scored")
    confidence: float = setting(params.CONFIDENCE, "level of the intervals; a test is sure below 1 - this")
    resamples: int = setting(params.BOOTSTRAP_RESAMPLES, "bootstrap resamples, and random flips of signs")
    cluster_column: str = setting("", "rows with the same value here are resampled together; default: each by itself")
    group_columns: str | None = setting(
        None, f"tables by group, columns joined by commas; default: {params.GROUP_COLUMNS}, where they are there"
    )
    gold: str = setting("", "a .scores.csv with human labels: corrects yes-or-no measures for the judge's errors")
    gold_labels: str = setting("", "for which measure, and where its label stands: measure=column, joined by commas")
    counterfactual: list[str] = field(
        default_factory=list,
        metadata={"help": "scored files of a counterfactual set, as NAME=FILE: gaps between groups"},
    )
    export: str = setting("", "also write logs in other formats, joined by commas: inspect, lm_eval")
    quoted_rows: int = setting(params.QUOTED_ROWS, "rows shown where a system gains most, and where it loses most")
    redact: bool = setting(False, "leave all texts out of the report, so that it can be passed on")
    plan: bool = setting(False, "how many rows would show a difference? Prints that, and writes nothing")
    detect: str = setting("", "for --plan: measure=difference, joined by commas; default: the differences seen")
    power: float = setting(params.POWER, "for --plan: probability of finding the difference")

    def __post_init__(self):
        between_0_and_1(self, "confidence", "power")
        at_least(100, self, "resamples")
        if wrong := set(self.formats()) - {"inspect", "lm_eval"}:
            raise ValueError(f"--export {', '.join(sorted(wrong))}: there are inspect and lm_eval")
        if bool(self.gold) != bool(self.gold_labels):
            raise ValueError("--gold FILE and --gold_labels measure=column go together")
        if any(not measure or not value for measure, value in self.labels() + _assignments(self.detect)):
            raise ValueError("--gold_labels and --detect: write measure=value, joined by commas")
        if self.detect and not self.plan:
            raise ValueError("--detect says what --plan is to find: add --plan")
        try:
            fine = all(math.isfinite(value) and value for value in self.differences().values())
        except ValueError:
            fine = False
        if not fine:
            raise ValueError(f"--detect {self.detect}: a difference is a number other than 0")

    def formats(self) -> list[str]:
        return list(dict.fromkeys(names(self.export)))

    def labels(self) -> list[tuple[str, str]]:
        return _assignments(self.gold_labels)

    def differences(self) -> dict[str, float]:
        return {measure: float(value) for measure, value in _assignments(self.detect)}
