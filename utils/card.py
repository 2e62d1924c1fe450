"""Model cards, in the front matter of the Hub, from what run records say."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from utils import params

# heading, what the model does, and what it is not for
REWRITER = (
    "Rewrites biased text",
    "Rewrites biased text so that it is fair and keeps its message.",
    "It was trained to rewrite single texts. It is no filter and no judge: check what it writes.",
)
COST_MODEL = (
    "Tells safe responses from unsafe ones",
    "Gives a response a cost: above 0 unsafe, below 0 safe, larger is worse.",
    "It repeats what the people who judged its training rows would most likely have said, and is often wrong: see "
    "metrics.json. It is no moderator.",
)


def licence_of(base: dict[str, Any]) -> str | None:
    """The licence of a base (a `model_record`), as the Hub names it; None if neither this repo nor its card says."""
    if base["name"] in params.EMBEDDED_MODELS:
        return params.EMBEDDED_MODELS[base["name"]]["licence"].lower()
    folder = params.ROOT / base["name"]
    try:
        if folder.is_dir():
            return ModelCard.load(folder / "README.md").data.license
        return ModelCard.load(base["name"]).data.license
    except Exception:  # no card, no network, no front matter: the Hub's errors have no common ancestor
        return None


def model_card(record: dict[str, Any], about: tuple[str, str, str], relation: str, more: list[str] = ()) -> str:
    """A card with data, settings, losses, energy and licence.

    Args:
        record: of training/train.py.
        about: REWRITER or COST_MODEL.
        relation: how the Hub calls it: adapter, finetune or merge.
        more: further paragraphs.
    """
    config, metrics, base = record["config"], record["metrics"], record["model"]
    hub_id = params.EMBEDDED_MODELS.get(base["name"], {}).get("hub_id", base["name"])
    licence = licence_of(base)
    title, does, limits = about
    method = config.get("method", "full")  # of an encoder-decoder all weights are trained
    if about is COST_MODEL:
        writes, unit = "text-classification", "row"
    else:
        writes, unit = "text-generation" if "method" in config else "text2text-generation", "supervised token"
    template = f", prompt template `{record['prompt']}`" if "prompt" in record else ""
    front = ModelCardData(
        language="en",
        license=licence or "other",
        library_name="peft" if relation == "adapter" else "transformers",
        pipeline_tag=writes,
        tags=["safety", "debiasing", method],
        base_model=None if (params.ROOT / hub_id).is_dir() else hub_id,
        base_model_relation=relation,
    )
    lines = ["---", front.to_yaml(), "---", "", f"# {title}", ""]
    lines += [
        f"{does} {method} on {base['name']} ({config['quantization']} weights){template}.",
        "",
        limits,
        "",
        "## Data",
        "",
        *(f"- {path} (SHA-256 {digest[:16]}...)" for path, digest in record["inputs"].items()),
        f"- {metrics['rows']['train']} rows to train, {metrics['rows']['validation']} held out, "
        f"{metrics['rows']['too_long']} left out as too long",
        "",
        "## Result",
        "",
        f"Validation loss per {unit} {metrics['validation_loss_before']:.3f} before, "
        f"{metrics['validation_loss']:.3f} after {metrics['best_step']} steps (seed {config['seed']}).",
        *more,
        "",
        "## Settings",
        "",
        *(f"- {name}: {config[name]}" for name in _SETTINGS if name in config),
        f"- code at {record['git_commit'] or 'an unknown commit'}; {_libraries(record)}",
        "",
        "## Energy",
        "",
        energy(metrics["train_seconds"], record["machine"]),
        "",
        "## Licence",
        "",
        f"That of the base: {licence}." if licence else f"That of the base, {base['name']}: look there.",
    ]
    return "\n".join(lines) + "\n"


_SETTINGS = (
    "lr", "lr_scheduler", "warmup_ratio", "weight_decay", "optimizer", "epochs", "max_steps", "batch_size",
    "gradient_accumulation", "max_grad_norm", "max_length", "train_on_inputs", "lora_r", "lora_alpha", "lora_dropout",
    "lora_targets", "compute_dtype", "nf4_quant_type", "nf4_double_quant",
)  # fmt: skip


def _libraries(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["libraries"].items() if version)


def energy(seconds: float, machine: dict[str, Any]) -> str:
    """Energy and emissions in words, with the formula: hours times assumed power, times the carbon of the grid."""
    gpus = machine.get("gpus") or []
    watts = params.WATTS_PER_CPU * machine["cpus"] + params.WATTS_PER_GPU * len(gpus)
    kwh = seconds / 3600 * watts / 1000
    return (
        f"About {kwh:.3f} kWh and {kwh * params.GRID_KG_PER_KWH:.3f} kg CO2e: {seconds / 60:.0f} minutes at {watts} W "
        f"({params.WATTS_PER_CPU} W for each of {machine['cpus']} CPU cores"
        + (f", {params.WATTS_PER_GPU} W for each GPU" if gpus else "")
        + f"; {params.GRID_KG_PER_KWH} kg/kWh). Assumed, not measured."
    )


def write_card(
    folder: Path, record: dict[str, Any], about: tuple[str, str, str], relation: str, more: list[str] = ()
) -> None:
    (folder / "README.md").write_text(model_card(record, about, relation, more), encoding="utf-8")
