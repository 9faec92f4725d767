"""Keep layers from learning: `--freeze`."""

from __future__ import annotations

from torch import nn

from utils.errors import UserError
from utils.training.optim import BACKBONE, backbone_rows, row_layers


class FrozenLayers:
    """Freeze rows of a model: they get no gradients, and compute as in validation.

    So their BatchNorm keeps its statistics, and they have no dropout. In YOLOv5 the statistics keep moving,
    which ruins pretrained ones on small batches.

    Args:
        model: a DetectionModel; its rows are `model.model[i]`.
        spec: the values of --freeze: one number n freezes the first n rows, several numbers exactly those
            rows, and 'backbone' (alone or with row numbers) all rows of the backbone.

    Raises:
        UserError: a row that the model does not have, or no row left to train.
    """

    def __init__(self, model: nn.Module, spec: list[int | str]) -> None:
        rows = row_layers(model)
        given = [n for n in spec if isinstance(n, int)]
        flag = f"--freeze {' '.join(map(str, spec))}"
        for word in spec:
            if word != BACKBONE and not isinstance(word, int):
                raise UserError(
                    f"--freeze {word}: is no row; give row numbers, or {BACKBONE} for all of its rows"
                )
        if BACKBONE in spec:
            self.numbers = sorted({*given, *backbone_rows(model)})
        else:
            self.numbers = list(range(given[0])) if len(given) == 1 else sorted(set(given))
        if any(not 0 <= n < len(rows) for n in self.numbers) or any(n < 0 for n in given):
            raise UserError(
                f"{flag}: the model's rows are 0 to {len(rows) - 1}; give one number n for the first n rows, "
                f"several row numbers, or {BACKBONE}"
            )
        if len(self.numbers) == len(rows):
            raise UserError(f"{flag}: that leaves nothing to train; freeze fewer rows")
        self.model = model
        self.modules = [rows[number] for number in self.numbers]
        self.output = rows[-1]
        for module in self.modules:
            module.requires_grad_(False)

    def __bool__(self) -> bool:
        """Return whether any row is frozen."""
        return bool(self.numbers)

    def train_rest(self) -> None:
        """Put the model into training mode, and its frozen rows into evaluation mode.

        The last row, Detect, is always in training mode: otherwise it returns decoded boxes, which the loss
        cannot use.
        """
        self.model.train()
        for module in self.modules:
            if module is not self.output:
                module.eval()

    def __str__(self) -> str:
        """Return one line for the log."""
        parameters = sum(p.numel() for module in self.modules for p in module.parameters())
        rows = f"row {self.numbers[0]}" if len(self.numbers) == 1 else f"{len(self.numbers)} rows"
        return (
            f"frozen: {rows}, {parameters:,} parameters; they and their BatchNorm statistics stay as they are"
        )
