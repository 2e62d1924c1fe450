"""Shared by all tests: no network, a tiny model made in memory, and scripts run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUARD = str(Path(__file__).parent / "no_network")

sys.path.insert(0, GUARD)
import sitecustomize  # noqa: E402, F401  (already imported by Python where PYTHONPATH names it)

os.environ["PYTHONPATH"] = GUARD + os.pathsep + os.environ.get("PYTHONPATH", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # two tests run side by side: threads that wait for a core spin on it
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPEN_AI_KEY", "OPEN_AI_TOKEN"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items):
    """The one long test first: the other process does the short ones meanwhile."""
    items.sort(key=lambda item: "smoke" not in item.keywords)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def run_script(*arguments, env=None, stdin=None, cwd=ROOT) -> subprocess.CompletedProcess:
    """Runs `python script --flags` in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        cwd=cwd,
        env=os.environ | (env or {}),
        timeout=600,
    )


@pytest.fixture
def script():
    return run_script


def make_tiny_model(folder: Path, hidden: int = 64) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template, saved like any model."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(specials + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    fast.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory) -> Path:
    """Another width, so that an adapter for `tiny_model` cannot fit."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "other", hidden=128)


@pytest.fixture
def pairs_csv(tmp_path) -> Path:
    """Twelve pairs of one word each: enough to train a tiny model on."""
    lines = ["biased_text,debiased_text"] + [f"bad thing {i},thing {i}" for i in range(12)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
