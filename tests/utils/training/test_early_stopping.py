"""When training stops early."""

from __future__ import annotations

from utils.training.early_stopping import EarlyStopping


def test_early_stop_after_patience_epochs_without_a_better_one() -> None:
    stopper = EarlyStopping(3)
    values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.2, 0.0]  # the tie at epoch 3 counts as better
    assert [stopper(i, v) for i, v in enumerate(values)] == [False] * 6 + [True]
    other = EarlyStopping(3)
    other.load_state_dict(EarlyStopping(3).state_dict() | {"best_fitness": 0.3, "best_epoch": 3})
    assert other(6, 0.1)
    assert not any(EarlyStopping(0)(i, -i) for i in range(500))
