"""Shared by the tests of 4-bit training: an adapter, its gradients, and the same model with plain weights."""

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model

from utils.likelihood import completion_loss
from utils.loading import load_base
from utils.models import ModelRef


def with_lora(model):
    """A LoRA adapter whose B is not zero, as it is at the start: zero would hide the gradient of A."""
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """All gradients of one training step, in one vector."""
    model.train()
    model.zero_grad()
    completion_loss(model, batch).backward()
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def float_twin(quantised, ref: ModelRef):
    """The same model with its 4-bit weights written out in float32, and the same adapter."""
    twin = with_lora(load_base(ref, "none", {"compute_dtype": "float32"}, training=True))
    twin.load_state_dict({k: v.float() for k, v in quantised.state_dict().items() if "lora" in k}, strict=False)
    modules = dict(quantised.named_modules())
    for name, module in twin.named_modules():
        if isinstance(modules.get(name), Linear4bit):
            weight = modules[name].weight
            module.weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
    return twin
