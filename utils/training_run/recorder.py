"""Record and save each epoch of a run."""

from __future__ import annotations

import logging

from utils.evaluation.evaluate import ValResult
from utils.evaluation.metrics import fitness
from utils.training.loggers import RunLoggers
from utils.training.options import TrainOptions
from utils.training.run_folder import CheckpointSaver, RunState

LOGGER = logging.getLogger("yolo.train")


class Recorder:
    """Validate, record and save each epoch; the main process has one.

    Args:
        opt: the run's options.
        state: network, average and best fitness.
        saver: saves the run's checkpoints.
        loggers: record the figures.
    """

    def __init__(
        self, opt: TrainOptions, state: RunState, saver: CheckpointSaver, loggers: RunLoggers
    ) -> None:
        self.opt, self.state, self.saver = opt, state, saver
        self.folder = saver.folder
        self.loggers = loggers

    def end_epoch(
        self, epoch: int, losses: tuple[float, ...], found: ValResult | None, val_losses: tuple[float, ...]
    ) -> bool:
        """Record and save a trained epoch; return whether it is the last.

        Args:
            losses, val_losses: box, obj, cls of training and validation.
            found: the average's metrics; None if it was not validated.
        """
        stopper, is_last = self.state.stopper, epoch + 1 == self.opt.epochs
        score = self._record(epoch, losses, found, val_losses)
        stop = (score is not None and stopper(epoch, score)) or is_last
        self.saver.save_epoch(self.state, epoch, score, is_last=stop)
        if stop and not is_last:
            LOGGER.info(
                "no improvement since epoch %d (--patience %d): stopping",
                stopper.best_epoch + 1,
                self.opt.patience,
            )
        return stop

    def _record(
        self, epoch: int, losses: tuple[float, ...], found: ValResult | None, val_losses: tuple[float, ...]
    ) -> float | None:
        """Write the epoch's row, and return its fitness; None without validation."""
        rates = [group["lr"] for group in self.state.trainer.optimizer.param_groups[:3]]
        values, score = [float("nan")] * 4, None
        if found is not None:
            m = found.metrics
            values = [m.precision, m.recall, m.map50, m.map]
            self.state.maps, score = found.maps, fitness(m)
            LOGGER.info(
                "epoch %d: precision %.3f, recall %.3f, mAP50 %.4f, mAP50-95 %.4f",
                epoch + 1,
                *values,
            )
        self.loggers.log_epoch([epoch, *losses, *values, *val_losses, *rates])
        self.loggers.log_pictures(epoch)
        return score
