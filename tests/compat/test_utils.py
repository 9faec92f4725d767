"""What compat/utils gives, held against figures that follow from YOLOv5's documented behaviour."""

from __future__ import annotations

import contextlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import utils.datasets
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.hub import folder  # noqa: F401
from tests.mjpeg_server import Camera, number_of
from utils import general
from utils.augmentations import letterbox
from utils.boxes import complete_iou
from utils.dataloaders import LoadImages, LoadScreenshots, LoadStreams
from utils.errors import UserError
from utils.metrics import bbox_iou, box_iou, fitness
from utils.plots import Annotator, colors, plot_one_box, save_one_box
from utils.torch_utils import select_device, smart_inference_mode


def test_nms_takes_a_network_s_whole_output_and_positional_arguments() -> None:
    rows = [[50.0, 50, 20, 20, 0.9, 1.0, 0.0], [51.0, 50, 20, 20, 0.8, 0.0, 1.0]]
    output = (torch.tensor([rows]), [torch.zeros(1)])
    assert [len(general.non_max_suppression(output, 0.25, 0.45, *more)[0]) for more in ((), ([1],))] == [2, 1]
    assert len(general.non_max_suppression(output, 0.25, 0.45, None, True)[0]) == 1
    assert len(general.non_max_suppression(output[0], max_det=1)[0]) == 1
    with pytest.raises(UserError, match="nm=32: masks"):
        general.non_max_suppression(output, nm=32)


def test_boxes_come_back_in_place_through_a_view() -> None:
    det = torch.tensor([[20.0, 28.0, 640.0, 408.0, 0.5, 3.0]])
    returned = general.scale_coords((416, 640), det[:, :4], (200, 320, 3))
    assert det.tolist() == [[10, 10, 320, 200, 0.5, 3]] and torch.equal(returned, det[:, :4])
    given = np.array([[20.0, 28.0, 640.0, 408.0]])
    general.scale_boxes((416, 640), given, (200, 320), ratio_pad=((2.0, 2.0), (0.0, 8.0)))
    assert given.tolist() == [[10, 10, 320, 200]]


def test_normalised_boxes_default_to_640_pixels() -> None:
    box = np.array([[0.5, 0.5, 0.25, 0.5]])
    assert general.xywhn2xyxy(box).tolist() == [[240, 160, 400, 480]]
    assert general.xyxy2xywhn(general.xywhn2xyxy(box)).tolist() == box.tolist()


@pytest.mark.parametrize(
    ("shape", "options", "size", "ratio", "border"),
    [
        ((200, 320), {}, (416, 640), 2.0, (0.0, 8.0)),
        ((200, 320), {"auto": False}, (640, 640), 2.0, (0.0, 120.0)),
        ((101, 200), {"new_shape": 200, "auto": False}, (200, 200), 1.0, (0.0, 49.5)),
        ((100, 200), {"scaleup": False, "auto": False}, (640, 640), 1.0, (220.0, 270.0)),
    ],
)
def test_letterbox_gives_ratio_and_half_of_the_border(shape, options, size, ratio, border) -> None:
    boxed, ratios, half = letterbox(np.zeros((*shape, 3), np.uint8), **options)
    assert boxed.shape[:2] == size and ratios == (ratio, ratio) and half == border
    assert (boxed[0, 0] == 114).all()


def test_letterbox_can_stretch() -> None:
    boxed, ratios, half = letterbox(np.zeros((100, 200, 3), np.uint8), (320, 300), scaleFill=True)
    assert boxed.shape == (320, 300, 3) and not boxed.any() and (ratios, half) == ((1.5, 3.2), (0.0, 0.0))


def test_sizes_become_whole_strides() -> None:
    assert general.check_img_size(630) == 640 and general.check_img_size([350, 640], s=32) == [352, 640]
    assert general.check_img_size(64, s=torch.tensor([8.0, 16.0, 64.0]), floor=128) == 128
    assert general.make_divisible(65, 32) == 96 and general.make_divisible(64.0, torch.tensor([8, 32])) == 64


def test_a_path_is_numbered_from_two(tmp_path: Path) -> None:
    assert general.increment_path(tmp_path / "exp", mkdir=True) == tmp_path / "exp"
    assert general.increment_path(tmp_path / "exp", mkdir=True) == tmp_path / "exp2"
    assert general.increment_path(tmp_path / "exp", sep="_") == tmp_path / "exp_2"
    assert general.increment_path(tmp_path / "exp", exist_ok=True) == tmp_path / "exp"
    (tmp_path / "a.b.txt").touch()
    assert general.increment_path(str(tmp_path / "a.b.txt")) == tmp_path / "a.b2.txt"


def test_requirements_are_named_and_never_installed(tmp_path: Path, log) -> None:
    assert general.check_requirements()
    listed = tmp_path / "requirements.txt"
    listed.write_text("numpy>=1\n# a comment\nabsent-package==3  # why\nnumpy>=999\n")
    assert not general.check_requirements(listed)
    assert "pip install 'absent-package==3' 'numpy>=999'" in log.text
    assert general.check_requirements(("numpy", "absent-package"), exclude=["absent-package"])


def test_files_are_found_by_their_bare_name() -> None:
    assert Path(general.check_file("coco128.yaml")) == general.ROOT / "data" / "coco128.yaml"
    with pytest.raises(UserError, match="must end in .pt or .onnx"):
        general.check_file("coco128.yaml", suffix=[".pt", ".onnx"])


def test_text_is_coloured_for_a_terminal(log) -> None:
    assert general.colorstr("a") == "\033[34m\033[1ma\033[0m"
    assert general.colorstr("bright_red", "underline", "a") == "\033[91m\033[4ma\033[0m"
    log.set_level("INFO", "yolo")

    def speak(word, times=2):
        general.print_args()
        general.print_args({"a": 1}, show_file=False, show_func=True)

    speak("no")
    assert [r.getMessage() for r in log.records] == ["test_utils: word=no, times=2", "speak: a=1"]


def test_a_profile_adds_up() -> None:
    profile = general.Profile()
    for _ in range(2):
        with profile:
            sum(range(10000))
    assert profile.t > profile.dt > 0


def test_training_state_is_stripped(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    model = load_checkpoint(folder / "tiny.pt").model
    save_checkpoint(tmp_path / "a.pt", model, meta={"epoch": 3}, training={"x": torch.zeros(1000)})
    general.strip_optimizer(tmp_path / "a.pt", tmp_path / "b.pt")
    stripped = load_checkpoint(tmp_path / "b.pt")
    assert stripped.training is None and stripped.meta["epoch"] == 3
    assert load_checkpoint(tmp_path / "a.pt").training is not None
    general.strip_optimizer(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size == (tmp_path / "b.pt").stat().st_size


def test_overlaps_agree_with_ours_and_with_arithmetic() -> None:
    a = torch.tensor([[5.0, 5, 10, 10]])
    b = torch.tensor([[5.0, 5, 10, 10], [10.0, 5, 10, 10], [30.0, 5, 10, 10]])
    plain = bbox_iou(a, b)
    assert plain.shape == (3, 1)
    torch.testing.assert_close(plain[:, 0], torch.tensor([1.0, 1 / 3, 0.0]))
    torch.testing.assert_close(bbox_iou(a, b, CIoU=True)[:, 0], complete_iou(a.expand(3, 4), b))
    # The boxes 20 apart: enclosed by 35 x 10, of which 200 are covered; centres 25 apart.
    assert bbox_iou(a, b, GIoU=True)[2].item() == pytest.approx(-(350 - 200) / 350)
    assert bbox_iou(a, b, DIoU=True)[2].item() == pytest.approx(-(25**2) / (35**2 + 10**2))
    corners = general.xywh2xyxy(b)
    torch.testing.assert_close(bbox_iou(corners[:1], corners, xywh=False)[:, 0], box_iou(corners, corners)[0])


def test_fitness_is_mostly_map() -> None:
    assert fitness(np.array([[0.1, 0.2, 0.5, 0.3, 9]])).tolist() == [pytest.approx(0.32)]


def test_devices_and_inference_mode() -> None:
    assert select_device("cpu") == torch.device("cpu") == select_device(torch.device("cpu"))

    @smart_inference_mode()
    def twice(x):
        return x * 2

    assert twice(torch.ones(1, requires_grad=True)).is_inference()


def test_images_and_videos_come_as_a_loop_expects(folder: Path) -> None:  # noqa: F811
    transformed = LoadImages(
        [folder / "wide.png", folder / "tall.png"], 64, transforms=lambda im: im[:8, :8].transpose(2, 0, 1)
    )
    assert len(transformed) == transformed.nf == 2
    (path, im, im0, cap, line), second = transformed
    assert Path(path).name == "tall.png" and Path(second[0]).name == "wide.png"
    assert im.shape == (3, 8, 8) and (im == im0[:8, :8].transpose(2, 0, 1)).all()
    assert cap is None and line.startswith("image 1/2 ") and transformed.mode == "image"
    _, im, im0, _, _ = next(iter(LoadImages(str(folder / "wide.png"), 64, auto=False)))
    assert im.shape == (3, 64, 64) and im.dtype == np.uint8 and im.flags.c_contiguous
    assert im0.shape == (75, 130, 3)
    with pytest.raises(UserError, match="use LoadStreams"):
        LoadImages("rtsp://host/1")
    assert utils.datasets.LoadImages is LoadImages


def test_streams_come_all_together_in_their_order(tmp_path: Path) -> None:
    with Camera(period=0.02) as camera:
        listed = tmp_path / "cameras.streams"
        listed.write_text(f"{camera.url('a')}\n{camera.url('b')}\n")
        dataset = LoadStreams(listed, img_size=192, stride=32)
        assert len(dataset) == 2 and dataset.mode == "stream"
        with contextlib.closing(iter(dataset)) as batches:
            seen = []
            for names, im, im0, cap, _ in batches:
                assert im.shape == (2, 3, 32, 192) and len(im0) == 2 and cap is None
                assert [name.rpartition("_")[2] for name in names] == ["a", "b"]
                seen.append([number_of(image) for image in im0])
                if dataset.count == 8:
                    break
        for numbers in zip(*seen):
            assert list(numbers) == sorted(numbers) and numbers[-1] > numbers[0]


def test_a_screen_needs_a_package_or_a_display() -> None:
    with pytest.raises(UserError, match="pip install mss|no screen to capture"):
        next(iter(LoadScreenshots("screen 0", 64)))


def test_an_annotator_draws_on_the_image_itself() -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    annotator = Annotator(image, line_width=1)
    annotator.box_label(
        torch.tensor([20.0, 60, 90, 100]), "cat 0.9", color=(0, 0, 200), txt_color=(0, 255, 0)
    )
    assert annotator.result() is image is annotator.im
    assert image[80, 20].tolist() == [0, 0, 200]
    above = image[40:60, 20:90].reshape(-1, 3)
    assert above[:, 1].max() == 255 and (above == (0, 0, 200)).all(1).any()  # letters and their ground
    before = image.copy()
    annotator.text((5, 5), "行人 text", txt_color=(255, 255, 255))
    assert (image[:40] != before[:40]).any() and (image[60:] == before[60:]).all()
    annotator.rectangle([150, 10, 180, 40], fill=(7, 7, 7))
    assert (image[11:40, 151:180] == 7).all()
    assert Annotator(np.zeros((640, 640, 3), np.uint8)).lw == 2
    assert Annotator(np.zeros((2000, 2000, 3), np.uint8)).lw == 6
    old = np.zeros((50, 50, 3), np.uint8)
    plot_one_box([10, 20, 40, 40], old, color=(1, 2, 3), line_thickness=1)
    assert old[30, 10].tolist() == [1, 2, 3]


def test_colours_are_rgb_or_bgr() -> None:
    assert colors(3, True) == colors(3)[::-1] and colors(torch.tensor(3.0)) == colors(3)


def test_a_crop_is_saved_with_right_colours(tmp_path: Path) -> None:
    bgr = np.zeros((100, 100, 3), np.uint8)
    bgr[..., 2] = 250  # red
    part = save_one_box(
        torch.tensor([40, 46, 60, 54]), bgr, tmp_path / "a" / "x.png", gain=1.5, pad=4, BGR=True
    )
    assert part.shape == (16, 34, 3) and (part[..., 2] == 250).all()
    again = save_one_box(
        np.array([40, 45, 60, 55]), bgr[..., ::-1], tmp_path / "a" / "x.png", gain=1, pad=0, square=True
    )
    assert again.shape == (20, 20, 3) and (again[..., 2] == 250).all()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"x.jpg", "x2.jpg"}
    for path in (tmp_path / "a").iterdir():
        assert abs(int(cv2.imread(str(path))[10, 10, 2]) - 250) < 6
    assert save_one_box([1, 1, 9, 9], bgr, tmp_path / "none.jpg", save=False).size
    assert not (tmp_path / "none.jpg").exists()


def test_colours_may_be_lists_and_arrays_as_in_scripts_of_2021() -> None:
    drawn = []
    for color in ((1, 2, 3), [1, 2, 3], np.array([1, 2, 3])):
        image = np.zeros((60, 80, 3), np.uint8)
        plot_one_box([10, 20, 40, 40], image, color=color, label="cat", line_thickness=1)
        Annotator(image).rectangle([50, 20, 60, 40], outline=color)
        drawn.append(image)
    assert (drawn[0] == (1, 2, 3)).all(2).sum() > 100
    assert (drawn[0] == drawn[1]).all() and (drawn[0] == drawn[2]).all()


def test_names_that_old_scripts_import_and_do_not_use_refuse_to_run() -> None:
    from utils.torch_utils import load_classifier

    with pytest.raises(UserError, match="load_classifier: resnet101 is not offered"):
        load_classifier()
    with pytest.raises(UserError, match="apply_classifier: .* leave it out"):
        general.apply_classifier([], None, None, None)
    general.check_suffix(["a.PT", ""], ".pt")
    with pytest.raises(UserError, match="weights: a.onnx: must end in .pt"):
        general.check_suffix("a.onnx", (".pt",), msg="weights: ")
    assert general.is_ascii("cat") and not general.is_ascii("猫")
    assert utils.datasets.letterbox is letterbox and general.save_one_box is save_one_box
