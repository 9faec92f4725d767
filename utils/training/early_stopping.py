"""Decide when training stops early."""

from __future__ import annotations

import math
from collections.abc import Mapping


class EarlyStopping:
    """Tell when `patience` epochs have passed without a better fitness.

    An equal fitness counts as better.

    Args:
        patience: epochs; 0 never stops.

    >>> stopper = EarlyStopping(patience=2)
    >>> [stopper(epoch, fitness) for epoch, fitness in enumerate([0.5, 0.4, 0.3])], stopper.best_epoch
    ([False, False, True], 0)
    """

    def __init__(self, patience: int = 100) -> None:
        self.patience = patience if patience > 0 else math.inf
        self.best_fitness = -math.inf
        self.best_epoch = 0

    def __call__(self, epoch: int, fitness: float) -> bool:
        """Record an epoch's fitness; return whether it is time to stop."""
        if fitness >= self.best_fitness:
            self.best_fitness = fitness
            self.best_epoch = epoch
        return epoch - self.best_epoch >= self.patience

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a saved state."""
        self.best_fitness = float(state["best_fitness"])
        self.best_epoch = int(state["best_epoch"])
