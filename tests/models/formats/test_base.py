"""Backend: any batch in the pieces that a file takes, and no size that it cannot take."""

import re
from pathlib import Path

import pytest
import torch

from models.formats.base import FORMATS, Backend, check_precision, output_problem, register_format
from models.formats.metadata import Metadata
from models.formats.nms_options import Suppression
from utils.errors import UserError
from utils.nms import NmsOptions

NAMES = {0: "cat", 1: "dog"}
CPU = torch.device("cpu")


class Means(Backend):
    """A network of one row an image, which holds the image's mean; it notes the batches it was run on."""

    def __init__(self, **metadata):
        super().__init__(Path("a.means"), CPU, Metadata(NAMES, 8, **metadata))
        self.batches = []

    def _run(self, images, augment):
        self.batches.append(len(images))
        return images.mean((1, 2, 3))[:, None, None].expand(-1, 1, 7)


def images(n, channels=3):
    return torch.linspace(0, 1, n)[:, None, None, None].expand(n, channels, 8, 16)


def test_backend_is_abstract():
    with pytest.raises(TypeError):
        Backend("a.pt", torch.device("cpu"), Metadata(NAMES, 8))


@pytest.mark.parametrize(("n", "batches"), [(1, [2]), (2, [2]), (5, [2, 2, 2])])
def test_a_fixed_batch_is_filled_up_and_split(n, batches):
    backend = Means(imgsz=(8, 16), batch=2)
    output = backend.predict(images(n))
    assert backend.batches == batches
    torch.testing.assert_close(output[:, 0, 0], torch.linspace(0, 1, n))


def test_a_free_batch_is_run_at_once():
    backend = Means(imgsz=(8, 16), batch=2, dynamic=True)
    assert backend.predict(images(5)).shape == (5, 1, 7)
    assert backend.batches == [5]
    assert backend.rect_ok and not Means(imgsz=(8, 16)).rect_ok


def test_integers_are_divided_by_255_and_colours_become_luma():
    white = torch.full((1, 3, 8, 16), 255, dtype=torch.uint8)
    assert Means().prepare(white).unique().tolist() == [1]
    grey = Means(ch=1).prepare(white)
    assert grey.shape == (1, 1, 8, 16)
    assert grey.mean().item() == pytest.approx(1)


def test_what_the_network_cannot_do_is_a_sentence():
    with pytest.raises(UserError, match=r"takes images of 8x8 .height x width., not 8x16; give --imgsz 8 8"):
        Means(imgsz=(8, 8)).predict(images(1))
    with pytest.raises(UserError, match="--augment needs a .pt checkpoint"):
        Means().predict(images(1), augment=True)
    with pytest.raises(UserError, match="has NMS inside and gives no decoded boxes"):
        Means(nms=Suppression()).predict(images(1))
    with pytest.raises(UserError, match="files of this format with NMS inside cannot be run here"):
        Means(nms=Suppression()).detections(images(1), NmsOptions())
    three = Means()
    three.names = {**NAMES, 2: "cow"}
    with pytest.raises(UserError, match="gives 2 classes, but there are 3 names"):
        three.predict(images(1))


def finished(n, nc):
    """Rows of an end-to-end head: two corners, confidence, class; the best first and zeros after the last."""
    rows = torch.zeros(2, n, 6)
    rows[:, :2] = torch.tensor([[10, 10, 90, 80, 0.9, nc - 1], [5, 5, 6, 6, 0.5, 0.0]])
    return rows


@pytest.mark.parametrize(
    ("output", "nc", "sentence"),
    [
        (torch.rand(1, 84, 8400), 80, r"output \(1, 84, 8400\) is that of a YOLOv8 or YOLO11 head"),
        (torch.rand(1, 5, 8400), 1, "YOLOv8 or YOLO11 head"),
        (torch.rand(1, 116, 8400), 80, "YOLOv8 or YOLO11 head"),
        (finished(300, 80), 80, "an end-to-end head .YOLOv10, YOLO26. or of NMS inside"),
        (finished(300, 1), 1, "an end-to-end head"),
        (torch.rand(1, 25200, 117), 80, "YOLOv5's segmentation head"),
        (torch.rand(1, 1000), 80, "another kind of network"),
    ],
)
def test_outputs_of_other_heads_are_named(output, nc, sentence):
    assert re.search(sentence, output_problem(output, nc))
    assert "train a network here" in output_problem(output, nc)


def test_one_class_of_yolov5_is_no_end_to_end_head():
    rows = torch.rand(1, 300, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [640] * 4 + [1, 1]
    )
    for nothing in (rows, rows * torch.tensor([1, 1, 1, 1, 0, 0])):  # in int8 all scores may be 0
        assert output_problem(nothing, 1) is None


def test_nearest_options_are_said_once(log):
    backend = Means(nms=Suppression(0.3, 0.5))
    for _ in range(2):
        near = backend.nearest(NmsOptions(0.001, 0.6))
    assert (near.conf_thres, near.iou_thres) == (0.3, 0.5)
    (record,) = set(log.records)
    assert "the IoU threshold is 0.5, not 0.6; mAP is not comparable" in record.getMessage()


def test_warmup_has_the_size_of_the_file():
    backend = Means(imgsz=(8, 16), batch=1)
    backend.warmup((1, 3, 640, 640))
    assert backend.batches == [1]


def test_a_format_is_registered_by_its_endings(monkeypatch):
    monkeypatch.setitem(FORMATS, ".means", None)
    assert register_format(".means")(Means) is Means
    assert FORMATS[".means"] is Means


def test_a_precision_that_the_file_has_not_is_refused():
    check_precision(Path("a"), False, False, CPU)
    check_precision(Path("a"), True, True, torch.device("cuda"))
    with pytest.raises(UserError, match="was exported in float32; leave --half out"):
        check_precision(Path("a"), False, True, CPU)
    with pytest.raises(UserError, match="is in float16, which needs a CUDA device"):
        check_precision(Path("a"), True, True, CPU)
