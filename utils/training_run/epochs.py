"""Train the epochs of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from utils.dataset.batch_sampler import image_weights
from utils.dataset.detection_dataset import Batch
from utils.dataset.loader import Loader
from utils.device import world_size
from utils.evaluation.evaluate import ValResult
from utils.evaluation.plots import plot_images, plot_labels
from utils.training.distributed import from_main, has_lost_another, mean_over_ranks
from utils.training.loggers import EpochBar
from utils.training.options import TrainOptions
from utils.training.trainer import Trainer
from utils.training_run.data import TrainingData
from utils.training_run.recorder import Recorder
from utils.training_run.validation import Validator

LOGGER = logging.getLogger("yolo.train")

DRAWN_BATCHES = 3


@dataclass(frozen=True)
class EpochLoop:
    """Train the epochs of a run; every process has one.

    Args:
        opt: the run's options.
        trainer: trains one epoch.
        loader: this process's batches.
        data: with --image-weights, its labels decide how often each image is shown.
        validator: measures the average after an epoch.
        recorder: the main process's; None on the others.
    """

    opt: TrainOptions
    trainer: Trainer
    loader: Loader
    data: TrainingData
    validator: Validator
    recorder: Recorder | None

    def run(self, first_epoch: int) -> int:
        """Train from `first_epoch` on, and return the number of epochs of the run.

        Ctrl-C, SIGTERM and the loss of another process leave a last.pt to resume from; they are raised again.
        """
        recorder, epoch = self.recorder, first_epoch
        before = recorder.state.stopper.state_dict() if recorder else {}
        if recorder and not self.opt.noplots and first_epoch == 0:
            plot_labels(self.data.train, self.data.config.names, recorder.folder.path)
        try:
            if recorder and first_epoch == 0:
                recorder.saver.save_start(recorder.state)
            for epoch in range(first_epoch, self.opt.epochs):
                before = recorder.state.stopper.state_dict() if recorder else {}
                if self._train(epoch):
                    break
        except (KeyboardInterrupt, RuntimeError, OSError) as error:
            if recorder and (isinstance(error, KeyboardInterrupt) or has_lost_another(error)):
                recorder.saver.save_interrupted(recorder.state, epoch, before)
            raise
        finally:
            self.loader.close()
        return epoch + 1

    def _train(self, epoch: int) -> bool:
        """Train one epoch and record it; return whether it is the last."""
        opt, recorder, images = self.opt, self.recorder, self.data.train
        self.loader.set_epoch(epoch)
        if opt.image_weights:
            maps = from_main(lambda: recorder.state.maps if recorder else None)
            weights = image_weights(images.all_labels, images.offsets, self.data.config.nc, maps)
            self.loader.set_image_weights(weights)
        bar = EpochBar(
            epoch,
            opt.epochs,
            len(self.loader),
            self.trainer.device,
            world_size=world_size(),
            quiet=recorder is None,
        )
        with closing(bar):
            result = self.trainer.train_epoch(self._batches(epoch), epoch, bar)
        if lesson := self.trainer.distillation:
            names = ("box", "obj", "cls", "neck")
            left = ", ".join(f"{name} {part:.3g}" for name, part in zip(names, lesson.parts.tolist()))
            LOGGER.info("epoch %d: still to learn from the teacher in the last batch: %s", epoch + 1, left)
        losses = mean_over_ranks(result.losses)
        found: ValResult | None = None
        val_losses: tuple[float, ...] = (float("nan"),) * 3
        if not opt.noval or epoch + 1 == opt.epochs:
            found, val_losses = self.validator.average()
        return from_main(
            lambda: recorder is not None and recorder.end_epoch(epoch, losses, found, val_losses)
        )

    def _batches(self, epoch: int) -> Iterable[Batch]:
        """Return the loader; the main process draws the first batches of a new run."""
        if epoch > 0 or self.recorder is None or self.opt.noplots:
            return self.loader
        return _drawn(self.loader, self.recorder.folder.path, self.data.config.names)


def _drawn(loader: Loader, folder: Path, names: dict[int, str]) -> Iterator[Batch]:
    """Yield the loader's batches, and draw the first of them into a folder."""
    for number, batch in enumerate(loader):
        if number < DRAWN_BATCHES:
            images, targets, paths, _ = batch
            plot_images(images, targets, paths, folder / f"train_batch{number}.jpg", names)
        yield batch
