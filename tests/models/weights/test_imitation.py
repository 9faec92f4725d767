"""A backbone learns the maps of the neck's own network, and nothing after the adapters changes."""

import copy

import pytest
import torch

from models.weights.align import align_adapters
from models.weights.imitation import imitate_maps
from models.weights.neck import load_neck
from tests.tiny_necks import CARRY, JOINTS, build, write_pictures, write_source
from utils.dataset.detection_dataset import BatchOptions
from utils.dataset.images import load_unlabelled
from utils.dataset.loader import build_loader

CPU = torch.device("cpu")
HYP = {"fliplr": 0.5, "translate": 0.1, "mosaic": 0.5}
LEARNING = {0, 1, 2, 3, *JOINTS}  # the backbone and the adapters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imitation")
    write_source(folder)
    write_pictures(folder, 8)
    return folder


def taught(folder, *, epochs, seed=0, dtype=None):
    model = build(CARRY, seed=1)
    load_neck(model, folder / "source.pt", {0: "disc", 1: "star"})
    paths = [str(path) for path in sorted(folder.glob("*.png"))]
    align_adapters(model, folder / "source.pt", paths, 64, device=CPU)
    before = copy.deepcopy(model.state_dict())
    images = load_unlabelled(paths, workers=0)
    with_mosaic = BatchOptions(64, 4, hyp=HYP, seed=seed)
    loader = build_loader(images, with_mosaic, workers=0, shuffle=True)
    report = imitate_maps(model, folder / "source.pt", loader, epochs, device=CPU, dtype=dtype, seed=seed)
    return model.state_dict(), before, report


def test_the_error_falls_and_only_backbone_and_adapters_change(folder):
    after, before, report = taught(folder, epochs=20)
    _, _, first = taught(folder, epochs=1)
    assert list(report.unexplained) == [8, 16] and report.epochs == 20
    for stride, share in report.unexplained.items():
        assert share < 0.8 * first.unexplained[stride]
    changed = {int(key.split(".")[1]) for key in before if not torch.equal(after[key], before[key])}
    assert changed == LEARNING
    assert f"{report.unexplained[8]:.3f} at stride 8" in str(report) and "20 epochs" in str(report)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_equal_seeds_are_equal_and_others_differ(folder, dtype):
    first, again, other = (taught(folder, epochs=1, seed=seed, dtype=dtype)[0] for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert all(bool(value.isfinite().all()) for value in first.values())
