"""8-bit products on a CPU, for inference: int8 weights times int8 activations, each row and output on its own scale.

Activations are quantised as they come, row by row, so that what a row gets does not depend on the rows beside it (the
method of LLM.int8() without its outlier columns, Dettmers et al. 2022, arXiv 2208.07339, section 2). The
8-bit products of bitsandbytes are for CUDA: on a CPU they take longer than bfloat16.
"""

import torch


class Int8Linear(torch.nn.Module):
    """A linear layer whose product is taken in int8. No gradients.

    `weight` is [out, in] in int8, `scale` [out] in float32: the largest absolute weight of each output over 127.
    """

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        product = torch._int_mm((rows / scale).round_().to(torch.int8), self.weight.t())
        y = product.float().mul_(scale).mul_(self.scale).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


def quantise(model):
    """Replaces every linear layer of `model`, the output layer too. Returns the model."""
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            model.set_submodule(name, Int8Linear(module))
    return model


def is_quantised(model) -> bool:
    """Whether `quantise` has been at work."""
    return isinstance(model.get_output_embeddings(), Int8Linear)
