"""Models are checked before they are loaded, and 4-bit weights stay trainable across evaluation passes."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from bitsandbytes.nn import Linear4bit, modules

from tests.fourbit import float_twin, gradients, with_lora
from utils.helpers import UserError
from utils.loading import keep_trainable_layout, load_base, load_tokenizer
from utils.models import resolve


def a_batch():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 200, (3, 20), generator=generator)
    ids[:, :6] = ids[0, :6]  # an instruction that all rows share
    labels = ids.clone()
    labels[:, :8] = -100
    labels[2, 15:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.fixture
def ref(tiny_model):
    return resolve(str(tiny_model))


@pytest.fixture
def quantised(ref):
    return with_lora(load_base(ref, "nf4", {"compute_dtype": "float32"}, training=True))


def pack(model):
    """What bitsandbytes does to every 4-bit weight in the first eval-mode forward on a CPU with AVX512-bf16."""
    packed = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu(
                module.weight.data.view(torch.uint8), module.weight.quant_state
            )
            packed += 1
    assert packed


def test_gradients_of_4bit_weights_equal_those_of_the_float_twin(quantised, ref):
    wanted = gradients(float_twin(quantised, ref), a_batch())
    assert F.cosine_similarity(gradients(quantised, a_batch()), wanted, dim=0) > 0.99


def test_packed_weights_give_wrong_gradients_and_are_put_back(quantised, ref):
    """The packed layout is planted here, so this fails without the repair on any CPU."""
    wanted = gradients(float_twin(quantised, ref), a_batch())
    pack(quantised)
    try:
        broken = F.cosine_similarity(gradients(quantised, a_batch()), wanted, dim=0)
    except RuntimeError:  # the fused kernel does not exist on this CPU
        broken = torch.tensor(0.0)
    keep_trainable_layout(quantised)
    assert F.cosine_similarity(gradients(quantised, a_batch()), wanted, dim=0) > 0.99 > broken


def test_an_evaluation_pass_does_not_repack(ref, monkeypatch):
    """Modules are told that the CPU can repack, so this fails without the switch on any CPU."""
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    model = with_lora(load_base(ref, "nf4", training=True))
    model.eval()
    with torch.no_grad():
        model(input_ids=a_batch()["input_ids"])
    states = [m.weight.quant_state for m in model.modules() if isinstance(m, Linear4bit)]
    assert states and not any(getattr(state, "packing_format_for_cpu", False) for state in states)
    wanted = gradients(float_twin(model, ref), a_batch())
    assert F.cosine_similarity(gradients(model, a_batch()), wanted, dim=0) > 0.99


def test_what_is_not_a_model_is_refused_in_one_line(tmp_path, tiny_model):
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    cases = [
        (str(empty), None, "holds no config.json"),
        (str(pickled), None, "pickle weights"),
        (str(adapter), None, "give it as --adapter_model"),
        ("no/such/folder", None, "no such folder"),
        ("smollm3", None, "no such folder"),
        ("some-org/some-model", None, "Hub is not reached"),
        (None, str(tmp_path / "nowhere"), "no such folder: python training/train.py makes one"),
        (None, str(empty), "not an adapter"),
        (None, str(adapter), "adapter_model.safetensors"),
    ]
    for base, adapter_model, message in cases:
        with pytest.raises(UserError, match=message) as error:
            resolve(base, adapter_model)
        assert "\n" not in str(error.value)


def test_an_adapter_for_another_base_is_refused(tmp_path, tiny_model, other_tiny_model):
    model = with_lora(load_base(resolve(str(tiny_model)), "none", training=True))
    model.save_pretrained(tmp_path / "adapter")
    assert resolve(str(tiny_model), tmp_path / "adapter").adapter == tmp_path / "adapter"
    with pytest.raises(UserError, match="another base"):
        resolve(str(other_tiny_model), tmp_path / "adapter")


def test_a_base_whose_weights_changed_is_another_base(tmp_path, tiny_model):
    from utils.models import identity, model_record

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    ref = resolve(str(copy))
    assert identity(ref) == identity(resolve(str(tiny_model)))
    record = model_record(ref)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_record(resolve(str(copy)))["identity"] != record["identity"]


def test_a_template_without_a_system_turn_is_refused_in_one_line(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}hello"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="takes no system turn .no system role."):
        load_tokenizer(resolve(str(folder)))
