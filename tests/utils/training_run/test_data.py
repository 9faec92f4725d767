"""A run's images and its loaders: who gets which batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_train import LEARN_HYP
from tests.tiny_set import write_set
from utils.dataset.loader import Loader
from utils.training.compute_mode import ComputeMode
from utils.training.options import TrainOptions
from utils.training_run.data import build_loaders, prepare_data
from utils.training_run.settings import RunSettings

CPU = torch.device("cpu")


def names(loader: Loader) -> list[list[str]]:
    return [[Path(path).name for path in paths] for _, _, paths, _ in loader]


def drawn(opt: TrainOptions, batch_size: int) -> tuple[list[list[str]], list[list[str]]]:
    """The file names of each training and validation batch."""
    settings = RunSettings(32, 64, batch_size, ComputeMode(), LEARN_HYP)
    loaders = build_loaders(opt, settings, prepare_data(opt), CPU)
    names = [
        [[Path(p).name for p in paths] for _, _, paths, _ in each] for each in (loaders.train, loaders.val)
    ]
    loaders.close()
    return names[0], names[1]


def test_every_image_once_and_twice_as_many_in_a_batch_of_validation(tmp_path: Path) -> None:
    data = write_set(tmp_path, train=10, val=8)
    train, val = drawn(TrainOptions(data=str(data), imgsz=64, workers=0), batch_size=2)
    assert [len(batch) for batch in train] == [2] * 5 and [len(batch) for batch in val] == [4] * 2
    for batches, part in ((train, "train"), (val, "val")):
        files = sorted(path.name for path in (tmp_path / "images" / part).iterdir())
        assert sorted(name for batch in batches for name in batch) == files
    again, _ = drawn(TrainOptions(data=str(data), imgsz=64, workers=0), batch_size=2)
    other, _ = drawn(TrainOptions(data=str(data), imgsz=64, workers=0, seed=1), batch_size=2)
    assert train == again != other


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_gets_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    data = write_set(tmp_path, train=8, val=8)
    opt = TrainOptions(data=str(data), imgsz=64, workers=0)
    whole, _ = drawn(opt, batch_size=4)
    settings, found = RunSettings(32, 64, 4, ComputeMode(), LEARN_HYP), prepare_data(opt)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    loaders = build_loaders(opt, settings, found, CPU)
    share = names(loaders.train)
    loaders.close()
    assert [len(batch) for batch in share] == [2, 2]
    assert all(set(mine) < set(batch) for mine, batch in zip(share, whole))
