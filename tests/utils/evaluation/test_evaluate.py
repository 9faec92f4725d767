"""The loop over a labelled set: figures of known detections, the loss, modes, plots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models.backends import ModelBackend
from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.evaluation.evaluate import EvalOptions, ImageResult, evaluate
from utils.letterbox import letterbox
from utils.training_run.validation import ValidationLoss

NAMES = {0: "dark", 1: "light"}
SIZES = [(60, 90), (90, 60), (64, 64), (50, 120), (33, 77)]  # (h, w)
CPU = torch.device("cpu")
QUIET = EvalOptions(progress=False)


def labelled_images(rng: np.random.Generator):
    """Native images with two boxes each, labels normalised; the fourth has none."""
    for number, (h, w) in enumerate(SIZES):
        image = rng.integers(0, 255, (h, w, 3), np.uint8)
        xy = rng.uniform(0.25, 0.35, (2, 2)) + [[0, 0], [0.35, 0.35]]
        labels = np.column_stack(([0, 1], xy, rng.uniform(0.2, 0.3, (2, 2)))).astype(np.float32)
        yield image, labels[: 0 if number == 3 else 2]


def batches(size: int = 96):
    """What a loader yields: all images of `labelled_images` letterboxed into one batch of 3 and one of 2."""
    pending = []
    for number, (image, labels) in enumerate(labelled_images(np.random.default_rng(0))):
        native = image.shape[:2]
        image, ratio, pad = letterbox(image, size, auto=False)
        boxes = xywhn2xyxy(labels[:, 1:], native[1] * ratio[1], native[0] * ratio[0], *pad)
        rows = np.column_stack((np.zeros(len(labels)), labels[:, 0], xyxy2xywhn(boxes, size, size)))
        pending.append(
            (torch.from_numpy(image.transpose(2, 0, 1).copy()), rows, f"{number}.jpg", (native, (ratio, pad)))
        )
    for group in (pending[:3], pending[3:]):
        targets = [
            np.column_stack((np.full(len(rows), i), rows[:, 1:])) for i, (_, rows, _, _) in enumerate(group)
        ]
        images, _, paths, shapes = zip(*group)
        yield (
            torch.stack(images),
            torch.from_numpy(np.concatenate(targets)).float(),
            list(paths),
            list(shapes),
        )


class Oracle(nn.Module):
    """Predicts the targets themselves, moved by `shift` pixels, with one box of noise per image."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.names, self.stride, self.ch = NAMES, torch.tensor([32]), 3
        self.shift = shift
        self.upcoming = batches()

    def forward(self, images: torch.Tensor, augment: bool = False):
        assert not self.training and images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        _, targets, _, _ = next(self.upcoming)
        size = images.shape[-1]
        decoded = torch.zeros(len(images), 6, 7)
        for i in range(len(images)):
            mine = targets[targets[:, 0] == i]
            decoded[i, : len(mine), :4] = mine[:, 2:] * size + torch.tensor([self.shift, 0, 0, 0])
            decoded[i, : len(mine), 4] = 0.9
            decoded[i, torch.arange(len(mine)), 5 + mine[:, 1].long()] = 0.9
        return decoded, [images.new_full((len(images), 1, 2, 2, 7), 2.0).bfloat16()]


def oracle(shift: float = 0.0, **options) -> ModelBackend:
    return ModelBackend(Oracle(shift).eval(), CPU, **options)


def test_a_perfect_model_scores_0_995_and_every_image_counts():
    found = []
    result = evaluate(oracle(), batches(), NAMES, QUIET, on_image=found.append)
    assert result.metrics.map == pytest.approx(0.995) and result.metrics.map50 == pytest.approx(0.995)
    assert (result.seen, result.instances) == (5, 8)
    assert result.maps == pytest.approx([0.995, 0.995])
    assert set(result.speed) == {"preprocess", "inference", "nms"}
    assert np.diag(result.confusion.matrix).tolist() == [4, 4, 0]
    for image, (native, labels) in zip(found, labelled_images(np.random.default_rng(0))):
        assert isinstance(image, ImageResult) and image.shape == native.shape[:2]
        expected = xywhn2xyxy(labels[:, 1:], image.shape[1], image.shape[0])
        np.testing.assert_allclose(image.labels[:, 1:], expected, atol=1e-3)
        np.testing.assert_allclose(np.sort(image.detections[:, :4], 0), np.sort(expected, 0), atol=1e-3)


def test_boxes_off_by_half_score_nothing():
    result = evaluate(oracle(shift=40), batches(), NAMES, QUIET)
    assert result.metrics.map50 < 0.05 and result.seen == 5
    assert result.confusion.matrix[:2, 2].tolist() == [4, 4]


def test_loss_gets_float32_maps_and_is_averaged_over_batches():
    seen = []

    def loss(raws, targets):
        seen.append((raws[0].dtype, len(targets)))
        return raws[0].sum(), torch.tensor([float(len(targets)), 2, 3])

    backend = oracle(keep_maps=True)
    mean = ValidationLoss(loss, backend.raw_maps, CPU)
    evaluate(backend, batches(), NAMES, QUIET, on_batch=mean)
    assert seen == [(torch.float32, 6), (torch.float32, 2)]
    assert mean.mean() == pytest.approx((4, 2, 3))


def test_mode_of_the_model_is_put_back():
    model = Oracle().train()
    evaluate(ModelBackend(model, CPU), batches(), NAMES, QUIET)
    assert model.training
    model = Oracle().eval()
    evaluate(ModelBackend(model, CPU), batches(), NAMES, QUIET)
    assert not model.training


def test_single_cls_counts_every_class_as_one():
    """The oracle still says class 1 for half the objects; the labels of a single-class loader are all 0."""

    def one_class():
        for images, targets, paths, shapes in batches():
            targets[:, 1] = 0
            yield images, targets, paths, shapes

    blind = evaluate(oracle(), one_class(), {0: "item"}, replace(QUIET, single_cls=True))
    assert blind.metrics.map50 == pytest.approx(0.995)
    assert blind.confusion.matrix.shape == (2, 2) and blind.confusion.matrix[0, 0] == 8


def test_hybrid_labels_turn_up_as_detections():
    found = []
    evaluate(oracle(shift=40), batches(), NAMES, replace(QUIET, hybrid=True), on_image=found.append)
    for image in found:
        certain = image.detections[image.detections[:, 4] == 1]
        order = lambda boxes: boxes[boxes[:, 0].argsort()]  # noqa: E731
        np.testing.assert_allclose(order(certain[:, :4]), order(image.labels[:, 1:]), atol=1e-3)


def test_plots_are_drawn(tmp_path):
    evaluate(oracle(), batches(), NAMES, replace(QUIET, plots_dir=tmp_path))
    names = {p.name for p in tmp_path.iterdir()}
    assert {"PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"} <= names
    assert {f"val_batch{i}_{kind}.jpg" for i in (0, 1) for kind in ("labels", "pred")} <= names
