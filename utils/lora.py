"""LoRA layers in one step: base product and low-rank product together, in the number type of the activations.

PEFT computes the two side by side: it casts the input to the type of the adapter (float32), keeps that copy for the
backward pass, and scales and adds in steps of their own. On a CPU that costs about as much as the low-rank products.
"""

import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from utils.configs import AdapterConfig, names


def lora_config(config: AdapterConfig, task: str, new_layers: list[str] | None = None) -> LoraConfig:
    """Our settings in the names of PEFT.

    Args:
        task: "CAUSAL_LM", or "SEQ_CLS", which trains the head too and saves it with the adapter.
        new_layers: what the base does not have, such as the pooler of an encoder: treated like the head.
    """
    return LoraConfig(
        task_type=task,
        modules_to_save=[name for name in new_layers or [] if not name.startswith(("classifier", "score"))] or None,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias=config.lora_bias,
        target_modules=config.lora_targets if config.lora_targets == "all-linear" else names(config.lora_targets),
    )


@contextlib.contextmanager
def one_product(model):
    """Within the block, forward passes of plain LoRA layers of `model` take one step (backward may come later).

    Layers with dropout, a bias of their own, a variant such as DoRA, or more than one adapter are left to PEFT.
    """
    changed = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
    for module in changed:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the one of its class is back


def _is_plain(layer: LoraLayer) -> bool:
    name, *others = layer.active_adapters
    base = layer.get_base_layer()
    return (
        not others
        and type(base) in (torch.nn.Linear, Linear4bit)
        and not base.weight.requires_grad
        and not (base.bias is not None and base.bias.requires_grad)
        and name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.lora_B[name].bias is None
        and not layer.disable_adapters
        and not layer.merged
        and not layer.fan_in_fan_out
    )


def _forward(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    (name,) = layer.active_adapters
    base = layer.get_base_layer()
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LowRankLinear.apply(x, base, down, up, layer.scaling[name])


def written_out(base, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a plain or 4-bit layer, [out, in], as plain numbers."""
    state = getattr(base.weight, "quant_state", None)
    return (base.weight if state is None else dequantize_4bit(base.weight, state)).to(dtype)


class _LowRankLinear(torch.autograd.Function):
    """y = x W' + b + s (x A') B', where ' is the transpose; W and b are frozen. A 4-bit W is written out when needed.

    Shapes: x [..., in], W [out, in], A [rank, in], B [out, rank].
    """

    @staticmethod
    def forward(ctx, x, base, down, up, scaling):
        rows = x.reshape(-1, x.shape[-1])
        down_type, down, up = down.dtype, down.to(x.dtype), up.to(x.dtype)
        inner = rows @ down.t()
        y = F.linear(rows, written_out(base, x.dtype), None if base.bias is None else base.bias.to(x.dtype))
        y.addmm_(inner, up.t(), alpha=scaling)
        ctx.save_for_backward(rows, inner, down, up)
        ctx.base, ctx.scaling, ctx.adapter_type, ctx.shape = base, scaling, down_type, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        rows, inner, down, up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        of_inner = (grad @ up).mul_(ctx.scaling)
        of_up = (grad.t() @ inner).to(ctx.adapter_type).mul_(ctx.scaling)
        of_down = (of_inner.t() @ rows).to(ctx.adapter_type)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ written_out(ctx.base, grad.dtype)).addmm_(of_inner, down).view(ctx.shape)
        return of_x, None, of_down, of_up, None
