"""The merged model is the trained one: measured for both kinds of base weights, refused where it is not."""

import json
import math
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from utils import merging
from utils.helpers import UserError
from utils.loading import load_base, load_model, load_tokenizer, stored_dtype
from utils.models import ModelRef, model_record, resolve
from utils.params import ROOT
from utils.supervision import encode

MERGE = ROOT / "training" / "merge.py"


def make_adapter(tiny_model, folder, quantization="nf4", scale=0.3, model=None, tokenizer=None, **settings):
    """An adapter as train.py leaves it, with weights large enough to matter."""
    ref = resolve(str(tiny_model))
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | settings)
    model = get_peft_model(model or load_base(ref, "none", {"compute_dtype": "float32"}), config)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = scale * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (tokenizer or load_tokenizer(ref)).save_pretrained(folder)
    record = {"model": model_record(ref), "config": {"quantization": quantization, "compute_dtype": "float32"}}
    (folder / "run.json").write_text(json.dumps(record))
    return resolve(None, folder)


def examples(ref: ModelRef, count=4):
    tokenizer = load_tokenizer(ref, side="right")
    rows = [{"number": n, "prompt": f"bad {n}", "completion": f"good {n}", "templated": True} for n in range(count)]
    return [encode(row, tokenizer, "rewrite") for row in rows]


def test_the_4bit_weights_written_out_are_the_ones_that_were_trained(tiny_model, tmp_path):
    """In float32 the merge into these is exact; the 16-bit weights are others."""
    ref = make_adapter(tiny_model, tmp_path / "adapter")
    trained = merging.trained_model(ref)
    assert merging.possible_bases(trained) == ["16-bit", "nf4"]
    found = {
        base: merging.difference(trained, merging.merge(ref, trained, base, torch.float32), examples(ref))
        for base in merging.BASES
    }
    assert found["nf4"].kl_mean < 1e-6 and found["nf4"].agreement == 1 and found["nf4"].rows == 4
    assert found["16-bit"].kl_mean > 100 * max(found["nf4"].kl_mean, 1e-9)


def test_an_adapter_of_16bit_weights_has_one_base(tiny_model, tmp_path):
    ref = make_adapter(tiny_model, tmp_path / "adapter", quantization="none")
    trained = merging.trained_model(ref)
    assert merging.possible_bases(trained) == ["16-bit"]
    assert (
        merging.difference(trained, merging.merge(ref, trained, "16-bit", torch.float32), examples(ref)).kl_max < 1e-6
    )


def test_divergence_of_known_distributions(monkeypatch):
    """KL(p||q) for p = (1/2, 1/2) and q = (1/4, 3/4), by hand: ln 2 - ln 3 / 2."""

    class Fixed(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, probabilities):
            super().__init__()
            self.logits = torch.tensor(probabilities).log()

        def forward(self, input_ids):
            logits = self.logits.expand(*input_ids.shape, 2)
            return type("Output", (), {"logits": logits})

    example = merging.Example({}, [0, 1, 1], [-100, 1, 1], True)
    found = merging.difference(Fixed([0.5, 0.5]), Fixed([0.25, 0.75]), [example])
    assert found.kl_mean == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-5)
    assert found.kl_max == pytest.approx(found.kl_mean) and found.tokens == 2
    assert found.loss_trained == pytest.approx(math.log(2)) and found.loss_merged == pytest.approx(math.log(4 / 3))
    assert merging.difference(Fixed([0.4, 0.6]), Fixed([0.3, 0.7]), [example]).agreement == 1
    assert merging.difference(Fixed([0.6, 0.4]), Fixed([0.3, 0.7]), [example]).agreement == 0


def test_a_merge_that_is_wrong_is_refused(tiny_model, tmp_path, monkeypatch):
    """The adapter is left out on purpose: within --max_kl, as it changes little, and still another model."""
    from training.merge import choose
    from utils.configs import MergeConfig

    ref = make_adapter(tiny_model, tmp_path / "adapter", scale=1)
    config = MergeConfig(adapter_model=str(tmp_path / "adapter"))
    model, report = choose(ref, config, torch.bfloat16)
    assert report["kept"] == "nf4" and report["nf4"]["kl_mean"] < 0.001
    assert report["limit"] == report["learned"]["kl_mean"] / 2 < config.max_kl
    plain = merging.load_base
    monkeypatch.setattr(
        merging, "merge", lambda ref, trained, base, dtype: plain(ref, "none", {"compute_dtype": "float32"}).eval()
    )
    with pytest.raises(UserError, match="the merged model is not the trained one: KL .*itself changes the base by"):
        choose(ref, config, torch.bfloat16)


def test_the_script_keeps_the_closer_base_and_writes_a_report(tiny_model, script, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter")
    flags = [MERGE, "--adapter_model", tmp_path / "adapter", "--output", tmp_path / "merged", "--rows", 5]
    result = script(*flags)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert report["kept"] == min(("16-bit", "nf4"), key=lambda base: report[base]["kl_mean"])
    assert report["nf4"]["rows"] == 5 and f"{report['kept']} weights" in result.stdout
    other = script(*flags, "--base_weights", "16-bit", "--dtype", "float32", "--max_shard_size", "100KB")
    assert other.returncode == 0, other.stderr
    shards = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(shards) > 1 and {t.dtype for t in load_file(shards[0]).values()} == {torch.float32}
    assert "16-bit" in json.loads((tmp_path / "merged" / "merge_report.json").read_text())["kept"]
    strict = script(*flags, "--max_kl", "1e-9")
    assert strict.returncode == 2 and "limit 1e-09 (--max_kl 1e-09" in strict.stderr
    assert sorted((tmp_path / "merged").glob("model-*.safetensors")) == shards  # what was there stays
    pushed = script(*flags, "--base_weights", "16-bit", "--dtype", "float32", "--push_to_hub", "me/model")
    assert pushed.returncode == 2 and "--push_to_hub me/model failed" in pushed.stderr.splitlines()[-1]


def test_a_sum_that_overflows_is_refused(tiny_model, tmp_path):
    ref = make_adapter(tiny_model, tmp_path / "adapter", scale=2e2)
    trained = merging.trained_model(ref)
    with pytest.raises(UserError, match="not finite in float16 .*try --dtype float32"):
        merging.merge(ref, trained, "16-bit", torch.float16)


def test_shared_embeddings_become_two_where_the_adapter_changes_one(tiny_model, tmp_path):
    tied = shutil.copytree(tiny_model, tmp_path / "tied")
    tensors = load_file(tied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    ref = make_adapter(tied, tmp_path / "adapter", quantization="none", target_modules=["q_proj", "lm_head"])
    trained = merging.trained_model(ref)
    merged = merging.merge(ref, trained, "16-bit", torch.float32)
    assert not merged.config.tie_word_embeddings
    assert merging.difference(trained, merged, examples(ref)).kl_max < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert "lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")


def test_tokens_that_the_base_does_not_know(tiny_model, tmp_path):
    ref = make_adapter(tiny_model, tmp_path / "adapter", quantization="none")
    tokenizer = load_tokenizer(ref)
    tokenizer.add_tokens(["<group>", "<other>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="2 tokens that .* does not know"):
        load_model(ref)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_that_brings_tokens_is_loaded_merged_and_used(tiny_model, script, tmp_path, quantization):
    """Made as PEFT documents it: embeddings resized, and saved with the adapter."""
    ref = resolve(str(tiny_model))
    tokenizer = load_tokenizer(ref)
    tokenizer.add_tokens(["<group>", "<other>"])
    model = load_base(ref, "none", {"compute_dtype": "float32"})
    model.resize_token_embeddings(len(tokenizer))
    make_adapter(
        tiny_model, tmp_path / "adapter", quantization, scale=0.1, model=model, tokenizer=tokenizer,
        target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"],
    )  # fmt: skip
    flags = ["--adapter_model", tmp_path / "adapter", "--output"]
    result = script(MERGE, *flags, tmp_path / "merged", "--rows", 5)
    assert result.returncode == 0, result.stderr
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert len(stored["model.embed_tokens.weight"]) == len(tokenizer)
    asked = ["--input_text", "a <group> b", "--max_new_tokens", 8]
    models = (["--adapter_model", tmp_path / "adapter"], ["--base_model", tmp_path / "merged"])
    answers = [script(ROOT / "testing" / "infer.py", *asked, "--quantization", "none", *model) for model in models]
    assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr


def test_the_number_type_is_that_of_the_base(tiny_model, tmp_path):
    """Also where the configuration has it under its older name."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    assert stored_dtype(resolve(str(base))) == "bfloat16"
    settings = json.loads((base / "config.json").read_text())
    del settings["dtype"]
    (base / "config.json").write_text(json.dumps(settings | {"torch_dtype": "float16"}))
    assert stored_dtype(resolve(str(base))) == "float16"


def test_a_full_disk_is_an_error_in_one_line(tiny_model, tmp_path):
    """A limit on the size of files stands for the disk."""
    make_adapter(tiny_model, tmp_path / "adapter", quantization="none")
    flags = ["--adapter_model", tmp_path / "adapter", "--output", tmp_path / "merged", "--rows", "2"]
    result = subprocess.run(
        [sys.executable, MERGE, *flags], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and last.startswith("error: ") and "is the disk full?" in last
    assert not (tmp_path / "merged").exists()
