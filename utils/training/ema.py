"""Keep the exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class ModelEMA:
    """Keep a running average of the model's float state, BatchNorm statistics and anchors included.

    decay(n) = 0.9999 (1 - exp(-n / 2000)) after n updates, so that a new average follows the model closely.

    Args:
        model: the model that is averaged, on its device, without DDP wrapper.
        decay, tau: of the formula above, 0.9999 and 2000.
        updates: n at the start.
    """

    def __init__(
        self, model: nn.Module, *, decay: float = 0.9999, tau: float = 2000.0, updates: int = 0
    ) -> None:
        self.model = copy.deepcopy(model).eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.decay = decay
        self.tau = tau
        self.updates = updates
        source = model.state_dict()
        # A shared tensor is listed once, or each update would move it twice.
        unique = {key for key, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        own = {k: v for k, v in self.model.state_dict().items() if k in unique and v.is_floating_point()}
        self._averages, self._values = list(own.values()), [source[key] for key in own]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.tau))
        torch._foreach_lerp_(self._averages, self._values, 1.0 - decay)

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Continue from a saved average."""
        self.model.load_state_dict(state)
        self.updates = updates
