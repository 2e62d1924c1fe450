"""The card of a model says what its run record says, in front matter that the Hub reads."""

import json

from huggingface_hub import ModelCard

from utils.card import REWRITER, energy, licence_of, model_card
from utils.configs import TrainConfig
from utils.memory import estimate
from utils.models import model_record, resolve

RECORD = {
    "model": {"name": "smollm2"},
    "config": {"method": "lora", "quantization": "nf4", "seed": 1, "lr": 0.0003, "lora_r": 8},
    "metrics": {
        "rows": {"train": 9, "validation": 2, "too_long": 1},
        "validation_loss_before": 3.0,
        "validation_loss": 2.5,
        "best_step": 7,
        "train_seconds": 3600.0,
    },
    "inputs": {"data/pairs.csv": "ab" * 32},
    "libraries": {"torch": "2.13.0", "openai": None},
    "machine": {"cpus": 4, "gpus": ["A100"]},
    "git_commit": "123abc",
    "prompt": "rewrite",
}


def test_front_matter_and_figures():
    card = ModelCard(model_card(RECORD, REWRITER, "adapter", ["", "One more thing."]))
    assert card.data.license == "apache-2.0" and card.data.library_name == "peft"
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    for said in ("3.000 before, 2.500 after 7 steps", "data/pairs.csv (SHA-256 abababababababab...)", "- lr: 0.0003",
                 "1 left out as too long", "torch 2.13.0", "123abc", "One more thing."):  # fmt: skip
        assert said in card.text, said
    assert "openai" not in card.text


def test_energy_is_hours_times_watts_times_grid():
    """One hour at 4 x 10 + 400 W: 0.44 kWh; times 0.396 kg/kWh."""
    assert energy(3600, RECORD["machine"]).startswith("About 0.440 kWh and 0.174 kg CO2e: 60 minutes at 440 W")
    assert "GPU" not in energy(3600, {"cpus": 2})


def test_the_licence_of_a_base_is_read_from_its_card_or_unknown(tmp_path):
    assert licence_of({"name": str(tmp_path)}) is None and licence_of({"name": "no/network"}) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    assert licence_of({"name": str(tmp_path)}) == "mit"
    assert "That of the base: mit." in model_card(RECORD | {"model": {"name": str(tmp_path)}}, REWRITER, "merge")


def test_memory_of_known_shapes(tiny_model):
    """The tiny model: 2 layers, width 64, MLP 128, 259 tokens; LoRA of rank 4 by hand."""
    ref = resolve(str(tiny_model))
    config = TrainConfig(lora_r=4, quantization="none", micro_batch_tokens=100)
    memory = estimate(ref, config, ordinary=False)
    attention, mlp = 4 * (64 + 64), 3 * (64 + 128)
    assert memory.trained == 16 * 4 * 2 * (attention + mlp)
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    count = 2 * vocabulary * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128) + 5 * 64
    assert memory.weights == 2 * count and memory.activations == 100 * 2 * 64 * 70
    assert 1e8 < memory.free < 1e13 and "about 0.6 GB" in str(memory)
    full = estimate(ref, TrainConfig(method="full", quantization="none"), ordinary=True)
    assert full.trained == 12 * count and full.weights == 4 * count
    assert estimate(ref, TrainConfig(quantization="nf4"), ordinary=False).weights < memory.weights
    assert model_record(ref)["name"] == str(tiny_model)
