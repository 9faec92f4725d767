"""Small annotated data sets in the formats of Pascal VOC and COCO."""

import json

from data import convert
from tests.utils.image_sets import write_image
from utils.dataset.convert.conversion import convert_dataset


def voc_object(name, box, difficult=0):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def voc_folder(root, items, lists=None, size=(100, 50)):
    """A VOC folder: stem -> objects; every image is 100 x 50, whatever the XML says."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for stem, objects in items.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg", (100, 50))
        width, height = size
        (root / "Annotations" / f"{stem}.xml").parent.mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>{width}</width><height>{height}</height>"
            f"</size>{''.join(objects)}</annotation>",
            encoding="utf-8",
        )
    for split, stems in (lists or {"train": items}).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def run_convert(*argv):
    return convert_dataset(convert.parse_opt([str(a) for a in argv]))


def read_rows(path):
    return [[float(v) for v in line.split()] for line in path.read_text().splitlines()]


def coco_file(tmp_path, annotations, images=None, categories=None):
    for name in ("a.jpg", "sub/b.jpg"):
        write_image(tmp_path / "pictures" / name, (100, 50))
    data = {
        "images": images
        or [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
            {"id": 9, "file_name": "sub/b.jpg", "width": 100, "height": 50},
        ],
        "categories": categories or [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    return path


def coco_annotation(box, image=7, category=3, **more):
    return {"id": 1, "image_id": image, "category_id": category, "bbox": box} | more
