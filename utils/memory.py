"""How much memory a training run will take, from the shapes of the weights and a few measured factors."""

import logging
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

from transformers import AutoConfig

from utils.configs import AdapterConfig
from utils.models import ModelRef, weight_shapes

logger = logging.getLogger(__name__)

# Bytes that a pass keeps for the backward pass, per token, layer and hidden unit (benchmarks/RESULTS.md); in 16 bits.
# The usual count for a transformer is 34 (Korthikanti et al. 2022, arXiv 2205.05198), without LoRA.
KEPT_BYTES = {"ours": 70, "ordinary": 150}
BYTES = {"nf4": 0.55, "int8": 1.0, "none": 2.0}  # of one weight; nf4 with its constants
PYTHON = 0.6e9  # the interpreter with its libraries


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of a run, and those that are free on its device (None: not known)."""

    weights: float
    trained: float
    activations: float
    free: float | None

    @property
    def total(self) -> float:
        return self.weights + self.trained + self.activations + PYTHON

    def __str__(self) -> str:
        parts = {"weights": self.weights, "what is trained": self.trained, "a pass": self.activations}
        listed = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in parts.items())
        free = "" if self.free is None else f"; {self.free / 1e9:.1f} GB are free"
        return f"about {self.total / 1e9:.1f} GB ({listed}){free}"


def log_estimate(ref: ModelRef, config: AdapterConfig, ordinary: bool) -> None:
    """Says how much a run will take; a warning where that is more than is free. The weights are loaded already."""
    if memory := estimate(ref, config, ordinary):
        tight = memory.free is not None and memory.activations + memory.trained > memory.free
        advice = "; too little: lower --micro_batch_tokens, or add --gradient_checkpointing"
        logger.log(logging.WARNING if tight else logging.INFO, "memory: %s%s", memory, advice if tight else "")


def estimate(ref: ModelRef, config: AdapterConfig, ordinary: bool) -> Memory | None:
    """Memory for one micro-batch of `config.micro_batch_tokens`; None if the base does not lie in a local folder.

    Args:
        ordinary: the loss is the library's, which pads and keeps more.
    """
    shapes = weight_shapes(Path(ref.path))
    if not shapes:
        return None
    settings = AutoConfig.from_pretrained(ref.path).get_text_config()  # the same names for all architectures
    count = sum(prod(shape) for shape in shapes.values())
    matrices = [s for name, s in shapes.items() if len(s) == 2 and not _is_embedding(name)]
    linear = sum(map(prod, matrices))
    wide = 2 if config.compute_dtype == "float32" or config.method == "full" else 1
    weights = wide * BYTES["none"] * (count - linear)
    weights += linear * (BYTES[config.quantization] if config.quantization != "none" else wide * BYTES["none"])
    trained = {"full": count, "lora": config.lora_r * sum(map(sum, matrices))}
    if config.method == "prefix":
        trained["prefix"] = 2 * config.prefix_tokens * settings.num_hidden_layers * settings.hidden_size
    trained = trained[config.method]
    kept = KEPT_BYTES["ordinary" if ordinary else "ours"] * wide
    activations = config.micro_batch_tokens * settings.num_hidden_layers * settings.hidden_size * kept
    # gradient and two moments in float32, and the weights themselves, which a full run has counted already
    return Memory(weights, trained * (12 if config.method == "full" else 16), activations, _free())


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def _free() -> float | None:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:  # what Linux could give without swapping
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
