"""Where this process trains: on a GPU if the machine shows it any (`CUDA_VISIBLE_DEVICES`), else on its cores."""

import torch
from torch import nn


def device() -> torch.device:
    """The GPU chosen with `take`, the first one if none was, or the processor."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device that a model is on."""
    return next(model.parameters()).device


def take(number: int) -> None:
    """Give this process, the machine's `number`-th that trains, its GPU; with fewer GPUs some processes share one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
