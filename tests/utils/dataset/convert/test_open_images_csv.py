"""Open Images: sides as fractions, classes in words, groups."""

import pytest

from tests.utils.dataset.convert.annotations import read_rows, run_convert
from tests.utils.image_sets import write_image
from utils.dataset.config import load_dataset
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folders")

FLAGS = "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
HEADER = f"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,{FLAGS}\n"


def row(image, label, box, group=0):
    x1, y1, x2, y2 = box
    return f"{image},xclick,{label},1,{x1},{x2},{y1},{y2},0,0,{group},0,0\n"


def open_images_folder(root, tables):
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/class-descriptions-boxable.csv").write_text(
        '/m/01,Cat\n/m/02,"Dog, small"\n/m/03,Fish\n'
    )
    for split, rows in tables.items():
        (root / f"annotations/{split}-annotations-bbox.csv").write_text(HEADER + "".join(rows))
        for image in {r.split(",")[0] for r in rows}:
            write_image(root / "images" / split / f"{image}.jpg", (100, 50))
    return root


def test_the_published_tables(tmp_path):
    tables = {
        "train": [
            row("a1", "/m/02", (0.1, 0.2, 0.3, 0.8)),
            row("b2", "/m/01", (0, 0, 1, 1)),
            row("a1", "/m/01", (0, 0, 0.5, 0.5)),
        ],
        "validation": [row("c3", "/m/01", (0, 0, 0.5, 1)), row("c3", "/m/02", (0, 0, 1, 1), group=1)],
    }
    root = open_images_folder(tmp_path / "set", tables)
    reports = run_convert("openimages", root, tmp_path / "out")
    config = load_dataset(tmp_path / "out/out.yaml")
    assert (config.names, set(config.splits)) == ({0: "Cat", 1: "Dog, small"}, {"train", "val"})
    assert read_rows(tmp_path / "out/labels/train/a1.txt") == [
        [1, 0.2, 0.5, 0.2, 0.6],
        [0, 0.25, 0.25, 0.5, 0.5],
    ]
    assert read_rows(tmp_path / "out/labels/val/c3.txt") == [[0, 0.25, 0.5, 0.5, 1]]
    assert reports["val"].lost_boxes == {"marked as groups": 1}
    kept = run_convert("openimages", root, tmp_path / "kept", "--keep-crowds")
    assert kept["val"].boxes == {0: 1, 1: 1}


def test_images_that_are_not_there_are_a_loss(tmp_path):
    rows = [row(name, "/m/01", (0, 0, 0.5, 0.5)) for name in "abc"] + [row("a", "/m/03", (0, 0, "x", 1))]
    root = open_images_folder(tmp_path / "set", {"train": rows})
    for name in "bc":
        (root / f"images/train/{name}.jpg").unlink()
    with pytest.raises(UserError, match="2 of 3 images of train are lost"):
        run_convert("openimages", root, tmp_path / "out")
    report = run_convert("openimages", root, tmp_path / "out", "--allow-loss")["train"]
    assert (report.images, report.lost_images.total(), report.lost_boxes.total()) == (1, 2, 3)


def test_ids_with_folders_keep_equal_names_apart(tmp_path):
    rows = [row("day/1", "/m/01", (0, 0, 0.5, 0.5)), row("night/1", "/m/01", (0, 0, 1, 1))]
    run_convert("openimages", open_images_folder(tmp_path / "set", {"train": rows}), tmp_path / "out")
    assert read_rows(tmp_path / "out/labels/train/day/1.txt") == [[0, 0.25, 0.25, 0.5, 0.5]]
    assert read_rows(tmp_path / "out/labels/train/night/1.txt") == [[0, 0.5, 0.5, 1, 1]]


def test_tables_that_are_none(tmp_path):
    root = open_images_folder(tmp_path / "set", {"train": [row("a", "/m/01", (0, 0, 0.5, 0.5))]})
    table = root / "annotations/train-annotations-bbox.csv"
    table.write_text(table.read_text() + '"' + "x" * 200_000)
    with pytest.raises(UserError, match="is not CSV"):
        run_convert("openimages", root, tmp_path / "out")
    table.unlink()
    with pytest.raises(UserError, match="no CSV with the columns ImageID"):
        run_convert("openimages", root, tmp_path / "out")
