"""Give every reader of files damaged and hostile input, and count what does not end in a sentence.

    python benchmarks/fuzz.py --examples 10000 --out fuzz_failures

Each example is a valid file that hypothesis changes: values deep inside it, words of its text, or its bytes.
The project's own readers get it, in a forked process. An example fails when it ends in anything but success
or a `UserError` of one line, takes more than 2 s or 500 MiB, or ends the process. Inputs that
fail are kept in --out; `--replay FILE...` reads them again.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import detect
import val
from models.formats.exporter import quiet
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from tests.tiny_set import TINY_MODEL, be_silent, write_set
from utils.cli import USERS_OS_ERRORS, Parser, guard
from utils.dataset.config import load_dataset
from utils.dataset.convert.annotated import ConvertOptions
from utils.dataset.convert.conversion import convert_dataset
from utils.dataset.image_set import ImageSet
from utils.dataset.images import load_images
from utils.dataset.labels import verify
from utils.dataset.verification import scan
from utils.errors import LONGEST_SENTENCE, UserError
from utils.files import ROOT, load_yaml
from utils.images import load_image
from utils.training.hyp import load_hyp
from utils.training.options import with_recipe
from utils.training.run_folder import resumed_options

SECONDS = 2.0
SLOW = "more than 2 s"
MEBIBYTES = 500.0
STUCK = 60.0  # seconds after which a process is killed
CHUNK = 250  # examples of one process

# What a value is replaced by, as text of a YAML or JSON: 'RAW' strings are written without their quotes.
RAW = [
    *("!!bool x", "!!timestamp x", "!!int y", "!!binary x", "!!python/name:os.system ", "!!set {a, b}"),
    *("2020-02-30", "2020-13-01 25:00:00", "12:30:45", ".inf", "-.nan", "0x" + "f" * 5000, "9" * 5000),
    *("*missing", "&a [*a]", "[" * 3000, "{a: " * 3000, "'", "\t", "<<: 1", "? [a]", "1e999", "NaN", "-0"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 255, 65536, 10**9, 1 << 31, 1 << 63, 10**30, -(10**30), 10**400),
    *(0.0, -0.5, 0.5, 1e-320, 1e200, 1e308, float("inf"), float("nan")),
    *("", " ", "a", "0", "-1", "1e3", "x" * 5000, "\ud800", "a\0b", "é", "yes", "~nobody-here/x", "../../x"),
    *("/dev/zero", "/dev/null", ".", "train", "C:x", "a\nb", "http://é.invalid/", "[" * 200, "nc", "None"),
    *([], {}, [[]], [None] * 3, [1, 2, 3, 4], {"a": 1}, {1: 2}, ["x"] * 300, [[[[1]]]], [-1, 10**12]),
]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value inside nested data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(*at, key), *_paths(part, (*at, key))]]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


@st.composite
def trees(draw: st.DrawFn, seeds: list[Any], values: list[Any]) -> Any:
    """Draw nested data with one to four values or keys replaced, removed, repeated or moved."""
    tree = _copied(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        places = _paths(tree)
        if not places:
            break
        *way, key = draw(st.sampled_from(places))
        parent = tree
        for step in way:
            parent = parent[step]
        how = draw(st.sampled_from(("replace",) * 5 + ("remove", "wrap", "move", "rename", "repeat")))
        if how == "remove":
            del parent[key]
        elif how == "wrap":
            parent[key] = [parent[key]]
        elif how == "repeat" and isinstance(parent, list):
            parent[key:key] = [parent[key]] * draw(st.sampled_from((1, 2, 300)))
        elif how == "rename" and isinstance(parent, dict):
            new = draw(st.sampled_from(values))
            parent[new if isinstance(new, str | int | float | None) else "x"] = parent.pop(key)
        elif how == "move":
            parent[key] = _copied(_at(tree, draw(st.sampled_from(places))))
        else:
            parent[key] = _copied(draw(st.sampled_from(values)))
    return tree


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        tree = tree[step]
    return tree


def _text(tree: Any) -> bytes:
    """Write nested data as JSON, which is YAML too, with the RAW words as they are."""
    text = json.dumps(tree, default=str, skipkeys=True)
    return re.sub(r'"RAW(\d+)"', lambda found: RAW[int(found[1])], text).encode()


@st.composite
def words(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw a text with one to four of its words replaced, removed or repeated."""
    parts = re.split(rb"(\W)", draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(parts) - 1))
        new = draw(st.sampled_from([*RAW, *(str(v)[:5000] for v in VALUES)])).encode("utf-8", "surrogatepass")
        parts[at] = draw(st.sampled_from((new, new, b"", parts[at] * 2, parts[at][:100] * 300)))
    return b"".join(parts)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw bytes with some changed, cut off, put in, or with a number of two or four bytes made huge."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from((64, 600, 1 << 30))))))
        how = draw(st.sampled_from(("flip", "flip", "number", "number", "cut", "insert", "remove")))
        if how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "number":
            size, order = draw(st.sampled_from((2, 4))), draw(st.sampled_from(("big", "little")))
            number = draw(st.sampled_from((0, 1, 12000, 16383, 30000, 65535)))
            data[at : at + size] = number.to_bytes(size, order)
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            del data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


def texts(seeds: list[Any]) -> st.SearchStrategy[bytes]:
    """Draw a file of YAML or JSON: mostly a changed tree, sometimes changed words or bytes."""
    written = [_text(tree) for tree in seeds]
    written += [yaml.safe_dump(tree, sort_keys=False).encode() for tree in seeds]
    raw = [f"RAW{number}" for number in range(len(RAW))]
    return st.one_of(
        trees(seeds, VALUES + raw).map(_text),
        trees(seeds, VALUES + raw).map(_text),
        words(written),
        damaged(written),
    )


@dataclass(frozen=True)
class Target:
    """What is read, and how: `read` gets a file whose name ends as `suffix`, alone in its folder."""

    name: str
    suffix: str
    inputs: st.SearchStrategy[bytes]
    read: Callable[[Path], object]


class Targets:
    """The targets, with seeds of their own below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_set(folder, train=2, val=2, size=64)
        self.image = folder / "images" / "train" / "0.png"
        self.label = folder / "labels" / "train" / "0.txt"
        self.checkpoint = self._payload()
        self.exported = self._exported()

    def all(self) -> list[Target]:
        labels = [
            self.label.read_bytes(),
            b"0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n1 .5 .5 .2 .2\n",
            b"\xef\xbb\xbf",
        ]
        return [
            Target("model YAML", ".yaml", texts(self._models()), DetectionModel),
            Target("data YAML", ".yaml", texts(self._data()), self.read_data),
            Target("hyp YAML", ".yaml", texts(self._hyps()), self.read_hyp),
            Target("label txt", ".txt", st.one_of(words(labels), damaged(labels)), self.read_label),
            Target("VOC XML", ".xml", st.one_of(words([_VOC]), damaged([_VOC])), self.read_voc),
            Target("COCO JSON", ".json", texts([_COCO]), self.read_coco),
            Target("label cache", ".npz", self._caches(), self.read_cache),
            Target("checkpoint", ".pt", self._checkpoints(), load_checkpoint),
            Target("image bytes", ".png", damaged(self._images()), self.read_image),
            Target("ONNX file", ".onnx", self._onnx_files(), self.run_exported),
            Target("TorchScript file", ".torchscript", self._scripts(), self.run_exported),
            *self._openvino(),
        ]

    def _openvino(self) -> list[Target]:
        if ".xml" not in self.exported:  # OpenVINO is not installed
            return []
        xml, weights = self.exported[".xml"], self.exported[".bin"]
        return [
            Target("OpenVINO network", ".xml", st.one_of(words([xml]), damaged([xml])), self.run_exported),
            Target("OpenVINO weights", ".bin", damaged([weights]), self.run_exported),
            Target("OpenVINO metadata", ".yaml", _metadata().map(_text), self.run_exported),
        ]

    def _models(self) -> list[Any]:
        more = [
            [-1, 2, "C3", [32]],
            [-1, 1, "SPPF", [32, 5]],
            [-1, 1, "InvertedResidual", [32, 1, 6]],
            [-1, 1, "Conv", [32, 3, 2]],
        ]
        neck = [
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 2], 1, "Concat", [1]],
            [[-1, 3], 1, "Detect", ["nc", "anchors"]],
        ]
        stated = {"mean": [0.4] * 3, "std": [0.2] * 3, "activation": "ReLU6", "anchors": 3}
        grown = TINY_MODEL | stated | {"backbone": [*TINY_MODEL["backbone"][:3], *more], "head": neck}
        return [TINY_MODEL, grown]

    def _data(self) -> list[Any]:
        plain = load_yaml(self.data)
        numbered = {"names": {0: "square", 1: "disc"}, "nc": 2, "test": None, "kpt_shape": [4, 3]}
        return [plain, plain | numbered | {"val": ["images/val"]}]

    def _hyps(self) -> list[Any]:
        options = {"epochs": 3, "batch_size": 8, "imgsz": 64, "cfg": "x.yaml", "freeze": [0], "cache": "ram"}
        return [load_yaml(ROOT / "data/hyps/hyp.scratch-low.yaml"), options | {"hyp": {"lr0": 0.01}}]

    def read_data(self, path: Path) -> None:
        """A data YAML as train.py reads it; nothing is fetched."""
        text = path.read_bytes()
        config = load_dataset(path, fetch=b"download" not in text and b"://" not in text)
        for split in config.splits:
            load_images(config, split, workers=0, use_cache=False)

    def read_hyp(self, path: Path) -> None:
        """A file as hyperparameters, as a recipe and as the opt.yaml of a resumed run."""
        for read in (
            load_hyp,
            lambda file: with_recipe({"recipe": str(file)}),
            lambda file: resumed_options(load_yaml(file), {}),
        ):
            with _sentences():
                read(path)

    def read_label(self, path: Path) -> None:
        """A label file beside a good image."""
        verify(str(self.image), str(path))
        verify(str(self.image), str(path), 12)

    def read_voc(self, path: Path) -> None:
        """An annotation of a VOC set with one image."""
        self._convert(path, "voc", path.parent)

    def read_coco(self, path: Path) -> None:
        """The annotations of a COCO set with one image."""
        self._convert(path, "coco", path)

    def _convert(self, path: Path, kind: str, source: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as out:
            options = ConvertOptions(
                source, Path(out, "out"), kind, images=self.image.parent, segments=kind == "coco"
            )
            convert_dataset(options)

    def read_cache(self, path: Path) -> None:
        """A cache of the two training images; what it says must be usable."""
        images = sorted(str(p) for p in self.image.parent.iterdir())
        packed, report = scan(images, path, workers=0, title="")
        found = ImageSet(packed, report)
        assert len(found) == 2 and [found.path(i) for i in range(2)] == images
        for i in range(2):
            assert len(found.segments(i)) in (0, len(found.labels(i)))
        assert ((found.all_labels[:, 1:] >= 0) & (found.all_labels[:, 1:] <= 1)).all()

    def _caches(self) -> st.SearchStrategy[bytes]:
        images = sorted(str(p) for p in self.image.parent.iterdir())
        path = self.folder / "seed.npz"
        scan(images, path, workers=0, title="")
        with np.load(path) as file:
            arrays = dict(file)
        numbers = sorted(name for name in arrays if arrays[name].dtype.kind in "iuf")
        changed = st.tuples(st.sampled_from(numbers), st.integers(0, len(_ARRAYS) - 1)).map(
            lambda drawn: _saved(arrays | {drawn[0]: _ARRAYS[drawn[1]](np.atleast_1d(arrays[drawn[0]]))})
        )
        return st.one_of(changed, damaged([path.read_bytes()]))

    def read_image(self, path: Path) -> None:
        """An image as verification and as detection read it."""
        record = verify(str(path), str(self.label))
        if record.width:
            assert load_image(path).shape[:2] == (record.height, record.width)
        else:
            with _sentences():
                load_image(path)

    def _images(self) -> list[bytes]:
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8))
        kinds: list[tuple[str, dict[str, Any]]] = [
            *(("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {}), ("GIF", {})),
            *(("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {}), ("WEBP", {"lossless": True})),
            *(("AVIF", {}), ("JPEG2000", {}), ("BMP", {}), ("PPM", {}), ("MPO", {})),
        ]
        exif = Image.Exif()
        exif[274] = 6
        kinds.append(("JPEG", {"exif": exif}))
        found = []
        for kind, options in kinds:
            buffer = io.BytesIO()
            with suppress(KeyError, OSError):  # this Pillow lacks the format
                picture.save(buffer, kind, **options)
                found.append(buffer.getvalue())
        return found

    def _payload(self) -> dict[str, Any]:
        path = self.folder / "seed.pt"
        with torch.random.fork_rng():
            model = DetectionModel(TINY_MODEL)
        save_checkpoint(path, model, meta={"epoch": 1, "opt": {"epochs": 3}}, training={"epochs": 2})
        return torch.load(path, weights_only=True)

    def _checkpoints(self) -> st.SearchStrategy[bytes]:
        state = self.checkpoint["state"]
        first = next(iter(state))
        tensors = [
            torch.zeros(1).expand(1 << 20, 1 << 14),
            torch.zeros(state[first].shape[::-1]),
            torch.full_like(state[first], float("nan")),
            torch.zeros(0),
            torch.zeros(state[first].shape, dtype=torch.int64),
            torch.zeros(1).expand(state[first].shape),
        ]
        changed = trees([self.checkpoint], VALUES + tensors).map(_torch_bytes)
        return st.one_of(changed, damaged([(self.folder / "seed.pt").read_bytes()]))

    def _exported(self) -> dict[str, bytes]:
        """A network of one sum as files of three formats, without metadata; ONNX with free sides, too."""
        network, example, files = Sum().eval(), torch.zeros(1, 3, 64, 64), {}
        axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch"}}
        with quiet():
            for name, free in (("fixed", None), ("free", axes)):
                buffer = io.BytesIO()
                torch.onnx.export(
                    network,
                    (example,),
                    buffer,
                    dynamo=False,
                    input_names=["images"],
                    output_names=["output0"],
                    dynamic_axes=free,
                )
                files[name] = buffer.getvalue()
            self.script = torch.jit.trace(network, example)
            if find_spec("openvino"):
                import openvino

                converted = openvino.convert_model(
                    self.script, example_input=example, input=("images", example.shape)
                )
                openvino.save_model(converted, self.folder / "seed.xml", compress_to_fp16=False)
                files |= {end: (self.folder / f"seed{end}").read_bytes() for end in (".xml", ".bin")}
        files[".yaml"] = _text(STATED)
        return files

    def _onnx_files(self) -> st.SearchStrategy[bytes]:
        graphs = [onnx.load_from_string(self.exported[name]) for name in ("fixed", "free")]

        def stated(graph: onnx.ModelProto, entries: dict[Any, Any]) -> bytes:
            # UTF-8 has no lone surrogates
            texts = {str(k).encode("utf-8", "replace"): _text(value) for k, value in entries.items()}
            onnx.helper.set_model_props(graph, {k.decode(): value.decode() for k, value in texts.items()})
            return graph.SerializeToString()

        changed = st.builds(stated, st.sampled_from(graphs), _metadata())
        return st.one_of(changed, changed, damaged([stated(graph, STATED) for graph in graphs]))

    def _scripts(self) -> st.SearchStrategy[bytes]:
        def stated(text: bytes) -> bytes:
            buffer = io.BytesIO()
            torch.jit.save(self.script, buffer, _extra_files={"config.txt": text})
            return buffer.getvalue()

        return st.one_of(_metadata().map(_text).map(stated), damaged([stated(_text(STATED))]))

    def run_exported(self, path: Path) -> None:
        """An exported file as detect.py and val.py run it; of OpenVINO's three files it may be one."""
        if path.suffix in (".xml", ".bin", ".yaml"):
            for suffix in (".xml", ".bin", ".yaml"):
                if suffix != path.suffix:
                    path.with_suffix(suffix).write_bytes(self.exported[suffix])
            path = path.with_suffix(".xml")
        given = {"weights": [str(path)], "device": "cpu", "project": str(path.parent)}
        with _sentences():
            detect.run(**given, source=str(self.image), nosave=True)
        val.run(**given, data=str(self.data), imgsz=64, batch_size=2, workers=0, task="speed")


class Sum(torch.nn.Module):
    """Four rows for each image, which its mean is added to."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)).view(-1, 1, 1) + torch.linspace(0, 1, 28).view(1, 4, 7)


STATED: dict[str, Any] = {
    "task": "detect",
    "schema": 1,
    "stride": 32,
    "names": {"0": "a", "1": "b"},
    "imgsz": [64, 64],
    "batch": 1,
    "shape": [1, 3, 64, 64],
    "dynamic": False,
    "half": False,
    "ch": 3,
}


def _metadata() -> st.SearchStrategy[Any]:
    """What an exported file may say of itself; NMS is never inside."""
    raw = [f"RAW{number}" for number in range(len(RAW))]
    nms = {"conf_thres": 0.25, "iou_thres": 0.45, "max_det": 300}
    return trees([STATED, STATED | {"nms": nms}, STATED | {"dynamic": True}], VALUES + raw)


_VOC = b"""<annotation><folder>JPEGImages</folder><filename>0.png</filename>
<size><width>64</width><height>64</height><depth>3</depth></size><segmented>0</segmented>
<object><name>square</name><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>40</xmax><ymax>44</ymax></bndbox></object>
<object><name>disc</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""
_COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 64}, {"id": 2, "file_name": "1.png"}],
    "categories": [{"id": 1, "name": "x", "supercategory": "s"}, {"id": 7, "name": "y"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": [[1, 2, 30, 2, 30, 40], [40, 4, 9, 9]]},
        {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"counts": "abc", "size": [1, 2]}},
    ],
}
# How an array of a label cache is changed.
_ARRAYS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda a: a.astype(np.float64),
    lambda a: a.astype(object),
    lambda a: a.astype(str),
    lambda a: a[:0],
    lambda a: a.reshape(-1),
    lambda a: a[None],
    lambda a: a * 0 - 1,
    lambda a: a + 1,
    lambda a: np.full_like(a, 120),
    lambda a: np.concatenate([np.atleast_1d(a)] * 2),
    lambda a: np.full(a.shape, np.nan, np.float32),
    lambda a: np.full(a.shape, 2**62),
    lambda a: np.zeros(1 << 17, np.int64),
    lambda a: np.broadcast_to(a.astype(np.float16), a.shape),
    lambda a: np.array("x"),
]


def _saved(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _torch_bytes(payload: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


@contextmanager
def _sentences() -> Iterator[None]:
    """Pass over a `UserError` of a bearable length, and over what the scripts' guard makes a sentence of."""
    try:
        yield
    except UserError as error:
        text = str(error)
        assert len(text) <= LONGEST_SENTENCE and text.splitlines() == [text], "a sentence of several lines"
    except OSError as error:
        if error.errno not in USERS_OS_ERRORS:
            raise


@dataclass
class Outcome:
    """What one example took; `failure` is '' for success and for a sentence."""

    failure: str
    seconds: float
    mebibytes: float


def attempt(target: Target, data: bytes, folder: Path) -> Outcome:
    """Read one input in this process."""
    with tempfile.TemporaryDirectory(dir=folder) as alone:
        path = Path(alone) / f"a{target.suffix}"
        path.write_bytes(data)
        failure, before = "", _resident(reset=True)
        begun = time.process_time()
        try:
            with _sentences():
                target.read(path)
        except Exception as error:  # noqa: BLE001 any other exception is what is looked for
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "fuzz.py" not in f.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "fuzz.py"
            ours = [f for f in frames if f.filename.startswith(str(ROOT))]
            called = f" from {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
            failure = f"{type(error).__name__} at {place}{called}: {str(error)[:80]}"
        seconds, grown = time.process_time() - begun, _resident() - before
    if not failure and seconds > SECONDS:
        failure = SLOW
    if not failure and grown > MEBIBYTES:
        failure = "more than 500 MiB"
    return Outcome(failure, seconds, max(grown, 0.0))


def _resident(*, reset: bool = False) -> float:
    """Return the most memory of this process since the last reset, in MiB."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    except (OSError, TypeError):  # not Linux: the highest of the whole process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Tally:
    """What all examples of a target took together."""

    examples: int = 0
    seconds: float = 0.0
    mebibytes: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.examples += 1
        self.seconds = max(self.seconds, outcome.seconds)
        self.mebibytes = max(self.mebibytes, outcome.mebibytes)
        if outcome.failure:
            self.failures[outcome.failure] += 1


def chunk(target: Target, number: int, examples: int, folder: Path, tell: Callable[[object], None]) -> None:
    """Make some examples in this process, and tell of each before and after it."""
    warm = []

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def one(data: bytes) -> None:
        tell(data)
        if not warm:  # what the first call imports and caches is not the example's
            attempt(target, data, folder)
            warm.append(True)
        tell(attempt(target, data, folder))

    one()


def run(target: Target, examples: int, out: Path, folder: Path) -> Tally:
    """Make all examples of a target in processes, and keep the inputs that fail."""
    tally, number = Tally(), 0
    while tally.examples < examples:
        wanted = min(CHUNK, examples - tally.examples)
        number += 1
        receive, send = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")

        def child(number: int = number, wanted: int = wanted, send: Any = send) -> None:
            be_silent()
            chunk(target, number, wanted, folder, send.send)

        process = context.Process(target=child)
        process.start()
        send.close()
        latest = b""
        with suppress(EOFError):
            while receive.poll(STUCK):
                told = receive.recv()
                if isinstance(told, bytes):
                    latest = told
                    continue
                _keep(tally, told, latest, target, out)
                latest = b""
        if process.is_alive() and latest:
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if latest:
            ended = f"ends the process with code {process.exitcode}"
            _keep(tally, Outcome(ended, 0.0, 0.0), latest, target, out)
        elif process.exitcode:
            raise RuntimeError(
                f"{target.name}: chunk {number} of this benchmark itself fails; run it with --only"
            )
    return tally


def _keep(tally: Tally, outcome: Outcome, data: bytes, target: Target, out: Path) -> None:
    """Count an outcome; the first three inputs of each failure are kept."""
    tally.add(outcome)
    count = tally.failures[outcome.failure]
    if outcome.failure and count <= 3:
        out.mkdir(parents=True, exist_ok=True)
        name = f"{target.name.replace(' ', '_')}_{tally.examples}{target.suffix}"
        (out / name).write_bytes(data)
        print(
            f"  {name}: {outcome.failure} ({outcome.seconds:.1f} s, {outcome.mebibytes:.0f} MiB)", flush=True
        )


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10000, help="of each target")
    parser.add_argument("--only", nargs="+", default=[], help="first words of the targets' names")
    parser.add_argument("--out", type=Path, default=Path("fuzz_failures"), help="folder of inputs that fail")
    parser.add_argument("--replay", type=Path, nargs="+", default=[], help="inputs to read again")
    return parser


def main() -> None:
    """Print a row for each target."""
    opt = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder)).all()
        for path in opt.replay:
            target = next(t for t in targets if path.name.startswith(t.name.replace(" ", "_")))
            outcome = attempt(target, path.read_bytes(), Path(folder))
            print(f"{path.name}: {outcome.failure or 'good'} ({outcome.seconds:.1f} s)")
        if opt.replay:
            return
        chosen = [t for t in targets if not opt.only or t.name.startswith(tuple(opt.only))]
        rows = ["| target | examples | failures | worst s | worst MiB |", "|---|---:|---:|---:|---:|"]
        for target in chosen:
            tally = run(target, opt.examples, opt.out, Path(folder))
            failed = tally.failures.total()
            most = f"{tally.seconds:.2f} | {tally.mebibytes:.0f}"
            rows.append(f"| {target.name} | {tally.examples} | {failed} | {most} |")
            print(rows[-1], flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    guard(main)
