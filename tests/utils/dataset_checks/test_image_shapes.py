"""Image sizes are summed up, and very long images are found."""

from __future__ import annotations

from pathlib import Path

from tests.utils.dataset_checks.sets import checked, noise, write_data, write_split
from utils.dataset_checks.image_shapes import check_image_shapes


def test_long_images_are_found(tmp_path):
    sizes = {"a.png": (64, 48), "b.png": (64, 48), "c.png": (20, 100), "d.png": (400, 100)}
    images = {name: noise(i, size) for i, (name, size) in enumerate(sizes.items())}
    write_split(tmp_path, "train", images, {})
    section = check_image_shapes(checked(write_data(tmp_path), imgsz=90))
    (found,) = section.findings
    assert (found.kind, Path(found.file).name, found.split) == ("long-image", "c.png", "train")
    assert found.value.startswith("20 x 100 px, 5.0 times")
    facts = section.facts["train"]
    assert "4 images, sizes: 3, most often 64 x 48" in facts and "long side 64 to 400 px" in facts
    assert "50.0% are enlarged to 90 px" in facts and "width / height 0.20 to 4.00" in facts
