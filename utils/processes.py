"""Several processes that train one model, started by torchrun or accelerate: one of them writes, all agree."""

import os
from typing import Any

from utils.helpers import UserError


def count() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def check_launch(world_size: int) -> None:
    """Raises UserError where the processes do not train together.

    Args:
        world_size: as the Trainer sees it.
    """
    # accelerate names a meeting point only for more than one process, and on a CPU it starts one all the same
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if by_accelerate and "WORLD_SIZE" not in os.environ and world_size == 1:
        raise UserError("accelerate launch starts a single process on a CPU: torchrun --nproc_per_node 2 starts two")
    if world_size != count():
        raise UserError(f"{count()} processes were started, and {world_size} found one another: check the launcher")


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def agree(value: Any) -> Any:
    """The value that the main process gives."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def largest(mine: float) -> float:
    """The largest of the numbers that the processes give."""
    if count() == 1:
        return mine
    from accelerate.utils import gather_object

    return max(gather_object([mine]))


def average_gradients(model) -> None:
    """Over all processes, of every parameter that is trained."""
    import torch

    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    for dtype in {gradient.dtype for gradient in gradients}:
        same = [gradient for gradient in gradients if gradient.dtype == dtype]
        together = torch.cat([gradient.flatten() for gradient in same])
        torch.distributed.all_reduce(together)
        together /= count()
        for gradient, mean in zip(same, together.split([g.numel() for g in same]), strict=True):
            gradient.copy_(mean.view_as(gradient))
