"""Plots: sizes and contents of grids, pictures of labels, results and study, no global matplotlib state."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tests.utils.results.test_drawing import forget, installed, make_font  # noqa: F401
from utils.errors import UserError
from utils.evaluation.curves import plot_confusion, plot_curves
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class
from utils.evaluation.plots import (
    RESULT_COLUMNS,
    plot_images,
    plot_labels,
    plot_results,
    plot_study,
    targets_to_detections,
    to_bgr,
)
from utils.files import ROOT
from utils.results.drawing import colour

NAMES = {0: "dark", 1: "light"}


def drawn(image: np.ndarray) -> np.ndarray:
    """Where something bright is in a black image that went through JPEG, its white frames left out."""
    bright = image.max(2) > 90
    bright[:4], bright[-4:], bright[:, :4], bright[:, -4:] = False, False, False, False
    return bright


def test_grid_holds_sixteen_images_within_1920_pixels(tmp_path):
    plot_images(
        torch.zeros(20, 3, 640, 512, dtype=torch.uint8), torch.zeros(0, 6), None, tmp_path / "a.jpg", NAMES
    )
    height, width = cv2.imread(str(tmp_path / "a.jpg")).shape[:2]
    assert height == 1920 and width == 4 * int(512 * 1920 / (4 * 640))


def test_grid_of_five_is_three_by_three(tmp_path):
    images = torch.full((5, 3, 40, 60), 0.5)
    plot_images(images, torch.zeros(0, 6), [f"{i}.jpg" for i in range(5)], tmp_path / "a.jpg", NAMES)
    grid = cv2.imread(str(tmp_path / "a.jpg"))
    assert grid.shape == (120, 180, 3)
    assert (grid[100:, :] > 240).all()  # the third row is empty
    assert abs(int(grid[10, 30, 0]) - 128) < 5


def test_boxes_lie_where_the_targets_say(tmp_path):
    targets = torch.tensor([[1.0, 1, 0.5, 0.5, 0.5, 0.5]])
    plot_images(torch.zeros(2, 3, 200, 200, dtype=torch.uint8), targets, None, tmp_path / "a.jpg", NAMES)
    grid = cv2.imread(str(tmp_path / "a.jpg"))
    first, second = grid[:200, :200], grid[:200, 200:]
    assert not drawn(first).any()  # it has no box
    ys, xs = np.nonzero(drawn(second)[60:])  # below the label's patch
    assert abs(xs.min() - 50) <= 2 and abs(xs.max() - 150) <= 2 and abs(ys.max() + 60 - 150) <= 2
    assert np.abs(second[120, 48:53].astype(int) - colour(1)).sum(1).min() < 90


def test_uncertain_predictions_are_left_out(tmp_path):
    found = [torch.tensor([[20.0, 20, 180, 180, 0.25, 0]])]
    before = found[0].clone()
    plot_images(torch.zeros(1, 3, 200, 200, dtype=torch.uint8), found, None, tmp_path / "a.jpg", NAMES)
    assert not drawn(cv2.imread(str(tmp_path / "a.jpg"))).any()
    found[0][0, 4] = 0.26
    plot_images(torch.zeros(1, 3, 200, 200, dtype=torch.uint8), found, None, tmp_path / "b.jpg", NAMES)
    assert drawn(cv2.imread(str(tmp_path / "b.jpg"))).sum() > 400
    assert torch.equal(found[0][:, :4], before[:, :4])


def test_targets_to_detections():
    targets = torch.tensor([[1.0, 3, 0.5, 0.5, 0.2, 0.4], [0, 2, 0.25, 0.5, 0.5, 1]])
    first, second, third = targets_to_detections(targets, 3, width=200, height=100)
    np.testing.assert_allclose(first, [[0, 0, 100, 100, 1, 2]], atol=1e-4)
    np.testing.assert_allclose(second, [[80, 30, 120, 70, 1, 3]], atol=1e-4)
    assert third.shape == (0, 6)


def test_to_bgr_turns_channels_and_scales():
    image = torch.zeros(3, 2, 2)
    image[0] = 1.0
    assert to_bgr(image)[0, 0].tolist() == [0, 0, 255]
    assert to_bgr(torch.full((1, 2, 2), 7, dtype=torch.uint8))[0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_label_pictures_of_any_number_of_labels(tmp_path, count):
    rng = np.random.default_rng(0)
    labels = np.column_stack((rng.integers(0, 2, count), rng.uniform(0, 1, (count, 4)))).astype(np.float32)
    plot_labels(SimpleNamespace(all_labels=labels), NAMES, tmp_path)
    for name in ("labels.jpg", "labels_correlogram.jpg"):
        assert cv2.imread(str(tmp_path / name)).shape == (1600, 1600, 3)


@pytest.mark.parametrize("name", ["a$b_$", r"$\x$", "$5 and $10_$", "$"])
def test_names_with_dollar_signs_are_no_formulas(tmp_path, name):
    labels = np.float32([[0, 0.5, 0.5, 0.2, 0.2]])
    plot_labels(SimpleNamespace(all_labels=labels), {0: name}, tmp_path)
    plot_study({name: np.ones((2, 10))}, (256, 384), tmp_path / "study.png")
    assert (tmp_path / "labels.jpg").is_file() and (tmp_path / "study.png").is_file()


def write_results(path, rows: int) -> None:
    header = ",".join(f"{f'column{c}':>20}" for c in range(14))
    values = [",".join(f"{r + c / 10:>20.5g}" for c in range(14)) for r in range(rows)]
    path.write_text("\n".join([header, *values]) + "\n")


@pytest.mark.parametrize("rows", [1, 12])
def test_results_picture(tmp_path, rows):
    write_results(tmp_path / "results.csv", rows)
    assert plot_results(tmp_path / "results.csv") == tmp_path / "results.png"
    assert cv2.imread(str(tmp_path / "results.png")).shape == (1200, 2800, 3)
    assert RESULT_COLUMNS == (1, 2, 3, 4, 5, 8, 9, 10, 6, 7)


def test_results_with_unvalidated_epochs(tmp_path):
    write_results(tmp_path / "results.csv", 6)
    text = (tmp_path / "results.csv").read_text().replace("2.4", "nan")
    (tmp_path / "results.csv").write_text(text)
    assert plot_results(tmp_path / "results.csv").is_file()


@pytest.mark.parametrize("text", ["", "epoch\n1\n", "a,b\nx,y\n"])
def test_a_results_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match=r"results\.csv"):
        plot_results(tmp_path / "results.csv")
    with pytest.raises(UserError, match="no such file"):
        plot_results(tmp_path / "absent.csv")


def test_study_picture(tmp_path):
    tables = {"study_a_b": np.random.default_rng(0).random((3, 10))}
    plot_study(tables, (256, 384, 512), tmp_path / "study.png")
    assert cv2.imread(str(tmp_path / "study.png")) is not None


def test_pyplot_is_never_imported():
    """It would choose a display and keep figures in a global list."""
    code = "import sys, utils.evaluation.plots, utils.evaluation.curves; "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.filterwarnings("error")  # matplotlib warns of letters that a font has not
def test_names_in_any_script_are_drawn_in_an_installed_font_or_numbered(installed, tmp_path, log):
    truth = SimpleNamespace(all_labels=np.float32([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.5, 0.3, 0.2]]))
    curves = ap_per_class(np.ones((9, 10), bool), np.linspace(0, 1, 9), np.arange(9) % 2, np.arange(9) % 2)

    def drawn(*names):
        folder = tmp_path / "_".join(names)
        folder.mkdir(exist_ok=True)
        plot_labels(truth, dict(enumerate(names)), folder)
        plot_curves(curves, dict(enumerate(names)), folder)
        plot_confusion(ConfusionMatrix(2), dict(enumerate(names)), folder)
        plot_study({names[0]: np.ones((2, 10))}, (256, 384), folder / "study.png")
        images = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
        plot_images(images, torch.zeros(0, 6), [f"{names[1]}.jpg"], folder / "grid.jpg", {})
        files = (
            "labels.jpg",
            "PR_curve.png",
            "F1_curve.png",
            "confusion_matrix.png",
            "study.png",
            "grid.jpg",
        )
        return [cv2.imread(str(folder / name)) for name in files]

    plain, without = drawn("class0", "class1"), drawn("猫", "狗")
    same = [np.array_equal(a, b) for a, b in zip(plain, without)]
    assert same == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]  # a study and a grid name files, with ? for a letter
    assert "install a font that has them, such as Noto Sans CJK" in log.text
    make_font(installed / "cjk.ttf", "猫狗 0.123456789jpgmA@s")
    forget()
    with_font, turned = drawn("猫", "狗"), drawn("狗", "猫")
    for others in (plain, without, turned):
        assert not any(np.array_equal(a, b) for a, b in zip(with_font, others))
