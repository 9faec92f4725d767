"""Settle what depends on options, network and data together."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from utils.device import amp_dtype, world_size
from utils.errors import UserError
from utils.image_size import fit_side
from utils.training.autobatch import choose_batch_size
from utils.training.compute_mode import ComputeMode, this_machine, unmeasured_mode
from utils.training.distillation import fitted_gains
from utils.training.distributed import from_main
from utils.training.measured_mode import Workload, choose_mode
from utils.training.optim import add_nominal_batch
from utils.training.options import FROM, TrainOptions
from utils.training.run_folder import options_to_save

LOGGER = logging.getLogger("yolo.train")


@dataclass(frozen=True)
class RunSettings:
    """Hold the settings that depend on options, network and data together.

    Attributes:
        imgsz: pixels, a multiple of `stride`.
        batch_size: images per batch over all processes.
        mode: how the network computes.
        hyp: the hyperparameters, `nominal_batch` fitted to the data set.
    """

    stride: int
    imgsz: int
    batch_size: int
    mode: ComputeMode
    hyp: dict[str, float]


def settle(
    opt: TrainOptions,
    model: nn.Module,
    hyp: dict[str, float],
    images: int,
    device: torch.device,
    *,
    stride: int,
    resumed: bool,
    mode: ComputeMode | None,
) -> RunSettings:
    """Settle image size, precision, batch size and the images per optimizer step.

    Args:
        images: of the training set.
        stride: of the network, or 32 if that is more.
        resumed: whether the run continues; its `hyp` are fitted already.
        mode: how the network computes, as this run or another recorded it; None: not yet known.

    Raises:
        UserError: a recorded mode of a CPU is asked for on another device, or does not fit the network.
    """
    imgsz = fit_side(opt.imgsz, stride, least=2)
    amp = amp_dtype(opt.own_amp, device)
    batch_size = opt.batch_size
    if batch_size == -1:
        batch_size = choose_batch_size(model, imgsz, device, amp)
    if opt.amp.startswith(FROM) and not resumed and device.type != "cpu":
        raise UserError(f"--amp {opt.amp}: is a choice for a CPU, and this runs on {device}; use --amp auto")
    work = Workload(imgsz, batch_size // world_size(), images * opt.epochs // world_size())
    mode = settle_mode(opt, mode, model, work, resumed) if device.type == "cpu" else ComputeMode(amp)
    if not resumed:
        hyp = fitted_gains(add_nominal_batch(hyp, images, batch_size), opt.teacher)
    return RunSettings(stride, imgsz, batch_size, mode, hyp)


def settle_mode(
    opt: TrainOptions, mode: ComputeMode | None, model: nn.Module, work: Workload, resumed: bool
) -> ComputeMode:
    """Settle how the network computes on a CPU, and make it compute so.

    A new run with `--amp auto` measures it, on the main process; a resumed run never does.
    """
    if mode is None and opt.amp == "auto" and not resumed:
        mode = from_main(lambda: choose_mode(model, work))
    elif mode is None:
        mode = unmeasured_mode(torch.device("cpu"), opt.own_amp)
    elif mode.machine and mode.machine != this_machine():
        LOGGER.warning(
            "--amp: %s was the fastest on %s; this is %s, where results may differ a little",
            *(mode, mode.machine, this_machine()),
        )
    mode.prepare(model, f"--amp {opt.amp}: the recorded choice ")
    return mode


def saved_options(opt: TrainOptions, settings: RunSettings, device: torch.device) -> dict[str, object]:
    """Return the options as run, with what was settled.

    How the network computes is recorded of a CPU only.
    """
    mode = settings.mode if device.type == "cpu" else None
    return options_to_save(opt, settings.hyp, settings.batch_size, mode)
