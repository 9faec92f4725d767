"""detect.py: boxes in the file's own pixels, every output file right, bad input answered in a sentence."""

import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
import export
from models.backends import load_backend
from models.formats.base import Backend
from models.formats.metadata import Metadata
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from tests.mjpeg_server import Camera
from utils.cli import guard
from utils.errors import UserError
from utils.files import save_yaml
from utils.letterbox import UNSCALED
from utils.nms import NmsOptions
from utils.tiles import TiledDetector, Tiling

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 4,
    "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]],
}


class TwoBoxes(Backend):
    """Finds the same two boxes in every image: class 1 at 0.9, class 0 at 0.5; xywh in letterbox pixels."""

    pytorch = True
    rows = ((32.0, 16.0, 16.0, 9.6, 1.0, 0.1, 0.9), (8.0, 8.0, 6.4, 6.4, 1.0, 0.5, 0.0))

    def __init__(self, names=None, fixed=None):
        metadata = Metadata(names or {0: "cat", 1: "../dog"}, 32, imgsz=fixed, dynamic=fixed is None)
        super().__init__("two.pt", torch.device("cpu"), metadata)
        self.shapes = []

    def _run(self, images, augment):
        self.shapes.append(tuple(images.shape[1:]))
        return torch.tensor([self.rows] * len(images))


@pytest.fixture
def backend(monkeypatch):
    fake = TwoBoxes()
    monkeypatch.setattr(detect, "load_backend", lambda *args, **options: fake)
    return fake


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    save_checkpoint(path, DetectionModel(TINY), meta={"epoch": 3}, training={"optimizer": torch.zeros(1000)})
    return path


def image(path, height=100, width=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 120, np.uint8))
    return str(path)


def video(path, frames=6, fps=10.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (200, 100))
    for _ in range(frames):
        writer.write(np.full((100, 200, 3), 120, np.uint8))
    writer.release()
    return str(path)


def frames_in(path):
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count, capture.get(cv2.CAP_PROP_FPS)


def run(tmp_path, source, **options):
    common = {"weights": "two.pt", "project": str(tmp_path / "runs"), "imgsz": 64}
    return detect.run(source=str(source), **common | options)


def run_script(*options, separate=False, **popen):
    """detect.py in a process of its own, as a user starts it; errors among its output unless `separate`."""
    script = [
        sys.executable,
        str(Path(detect.__file__)),
        "--imgsz",
        "64",
        "--conf-thres",
        "0",
        "--max-det",
        "3",
    ]
    environment = dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS="1")
    # A shell starts its background jobs with Ctrl-C ignored, and what is ignored is inherited.
    popen["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [*script, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if separate else subprocess.STDOUT,
        env=environment,
        **popen,
    )


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_boxes_come_back_in_native_pixels(tmp_path, backend):
    result = run(tmp_path, image(tmp_path / "a.png"))
    (found,) = result.detections
    expected = [[75, 35, 125, 65, 0.9, 1], [15, 15, 35, 35, 0.5, 0]]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-6)
    assert found.path.endswith("a.png") and found.frame == 0
    assert backend.shapes[-1] == (3, 32, 64)  # a rectangle, not the full square
    assert set(result.speed) == {"preprocess", "inference", "nms"} and min(result.speed.values()) > 0
    drawn = cv2.imread(str(result.save_dir / "a.png"))
    assert drawn.shape == (100, 200, 3) and (drawn != 120).any()


def test_backend_of_a_fixed_size_gets_the_full_square(tmp_path, monkeypatch):
    fake = TwoBoxes(fixed=(96, 96))
    monkeypatch.setattr(detect, "load_backend", lambda *args, **options: fake)
    run(tmp_path, image(tmp_path / "a.png"), nosave=True)
    assert set(fake.shapes) == {(3, 96, 96)}


def test_every_output_file(tmp_path, backend):
    source = tmp_path / "in"
    image(source / "a.png")
    video(source / "clip.mp4", 2)
    result = run(tmp_path, source, save_txt=True, save_conf=True, save_csv=True, save_crop=True)
    assert files(result.save_dir) == [
        "a.png",
        "clip.mp4",
        "crops/_dog/a.jpg",
        "crops/_dog/clip.jpg",
        "crops/_dog/clip2.jpg",
        "crops/cat/a.jpg",
        "crops/cat/clip.jpg",
        "crops/cat/clip2.jpg",
        "labels/a.txt",
        "labels/clip_1.txt",
        "labels/clip_2.txt",
        "predictions.csv",
    ]
    labels = (result.save_dir / "labels" / "a.txt").read_text()
    assert labels == "1 0.5 0.5 0.25 0.3 0.9\n0 0.125 0.25 0.1 0.2 0.5\n"
    table = (result.save_dir / "predictions.csv").read_text().splitlines()
    assert table[:3] == ["Image Name,Prediction,Confidence", "a.png,../dog,0.9000", "a.png,cat,0.5000"]
    assert len(table) == 1 + 3 * 2
    crop = cv2.imread(str(result.save_dir / "crops" / "cat" / "a.jpg"))
    assert abs(crop.shape[0] - 30.4) < 1 and abs(crop.shape[1] - 30.4) < 1


def test_corner_format_is_normalised(tmp_path, backend):
    result = run(tmp_path, image(tmp_path / "a.png"), save_txt=True, save_format=1, nosave=True, classes=[1])
    assert files(result.save_dir) == ["labels/a.txt"]
    assert (result.save_dir / "labels" / "a.txt").read_text() == "1 0.375 0.35 0.625 0.65\n"


def test_thresholds_classes_and_max_det_reach_nms(tmp_path, backend):
    source = image(tmp_path / "a.png")
    count = lambda **options: len(run(tmp_path, source, nosave=True, **options).detections[0].boxes)  # noqa: E731
    assert (count(), count(conf_thres=0.6), count(classes=0), count(max_det=1)) == (2, 1, 1, 1)


def test_equal_names_do_not_overwrite_each_other(tmp_path, backend):
    for name in ("x/a.png", "y/a.png", "y/a.jpg"):
        image(tmp_path / "in" / name)
    (tmp_path / "list.txt").write_text("./in/x/a.png\n./in/y/a.png\n./in/y/a.jpg\n")
    result = run(tmp_path, tmp_path / "list.txt", save_txt=True)
    assert files(result.save_dir) == [
        "a-2.png",
        "a-3.jpg",
        "a.png",
        "labels/a-2.txt",
        "labels/a-3.txt",
        "labels/a.txt",
    ]


def test_runs_get_numbered_folders_unless_told_otherwise(tmp_path, backend):
    source = image(tmp_path / "a.png")
    names = [run(tmp_path, source, exist_ok=ok).save_dir.name for ok in (False, False, True)]
    assert names == ["exp", "exp2", "exp"]


def test_video_keeps_its_frames_and_its_rate(tmp_path, backend):
    source = video(tmp_path / "clip.mp4", 9, fps=12.5)
    result = run(tmp_path, source)
    assert frames_in(result.save_dir / "clip.mp4") == (9, pytest.approx(12.5))
    assert [d.frame for d in result.detections] == list(range(1, 10))
    strided = run(tmp_path, source, vid_stride=2)
    assert frames_in(strided.save_dir / "clip.mp4") == (4, pytest.approx(6.25))


def test_unreadable_file_among_good_ones_is_skipped(tmp_path, backend):
    image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.jpg").write_bytes(b"no image")
    result = run(tmp_path, tmp_path / "in")
    assert files(result.save_dir) == ["a.png"] and len(result.detections) == 1


def test_nothing_readable_leaves_no_folder(tmp_path, backend):
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="not one of 1 files"):
        run(tmp_path, tmp_path / "b.jpg")
    assert not list((tmp_path / "runs").iterdir())


def test_formats_that_cannot_be_written_become_jpg(tmp_path, backend):
    from PIL import Image

    Image.new("RGB", (64, 32)).save(tmp_path / "a.mpo", format="MPO")
    assert files(run(tmp_path, tmp_path / "a.mpo").save_dir) == ["a.jpg"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"conf_thres": 1.5}, "conf-thres"),
        ({"iou_thres": -0.1}, "iou-thres"),
        ({"max_det": 0}, "max-det"),
        ({"vid_stride": 0}, "vid-stride"),
        ({"line_thickness": 0}, "line-thickness"),
        ({"classes": [2]}, "numbered 0 to 1"),
        ({"save_conf": True}, "save-txt"),
        ({"save_format": 1}, "save-txt"),
        ({"save_format": 2, "save_txt": True}, "save_format"),
        ({"visualize": True}, "visualize"),
        ({"data": "no/such.yaml"}, "no/such.yaml"),
        ({"plugins": ["no_such.py"]}, "no_such.py"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, backend, options, word):
    with pytest.raises(UserError, match=word) as error:
        run(tmp_path, image(tmp_path / "a.png"), **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_view_img_without_a_display_is_refused(tmp_path, backend, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no display"):
        run(tmp_path, image(tmp_path / "a.png"), view_img=True)


def test_wrong_number_of_names_is_refused(tmp_path, monkeypatch):
    fake = TwoBoxes(names={0: "cat", 1: "dog", 2: "cow"})
    fake.pytorch = False  # an exported file, whose names may come from elsewhere
    monkeypatch.setattr(detect, "load_backend", lambda *args, **options: fake)
    with pytest.raises(UserError, match="2 classes, but there are 3 names"):
        run(tmp_path, image(tmp_path / "a.png"))


def test_names_for_files_without_names_come_from_data(tmp_path, monkeypatch):
    seen = {}
    fake = TwoBoxes()
    monkeypatch.setattr(detect, "load_backend", lambda *args, **options: seen.update(options) or fake)
    (tmp_path / "d.yaml").write_text("names: [ant, bee]\n")
    run(tmp_path, image(tmp_path / "a.png"), data=str(tmp_path / "d.yaml"), nosave=True)
    assert seen["names"] == {0: "ant", 1: "bee"}


def test_without_weights_the_newest_run_looks_at_the_bundled_images(tmp_path, checkpoint, monkeypatch, log):
    best = tmp_path / "train" / "exp" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(checkpoint.read_bytes())
    save_yaml(tmp_path / "train" / "exp" / "opt.yaml", {"imgsz": 96, "data": "data/digits.yaml"})
    monkeypatch.setattr("utils.training.run_folder.RUNS", tmp_path / "train")
    monkeypatch.chdir(tmp_path)
    log.set_level("INFO", "yolo")
    common = {
        "project": str(tmp_path / "runs"),
        "device": "cpu",
        "conf_thres": 0.0,
        "max_det": 1,
        "nosave": True,
    }
    result = detect.run(**common)
    seen = [Path(found.path).name for found in result.detections]
    assert seen == ["digits_1.jpg", "digits_2.jpg", "grace_hopper.jpg"] and result.found == 3
    detect.run(**common, imgsz=64)
    lines = [record.getMessage() for record in log.records]
    assert lines[0] == f"no --weights given: using {best}, trained at 96 pixels"
    for size in (96, 64):
        assert any(f"digits_1.jpg: {size}x{size}, 1 " in line for line in lines)


def test_names_are_asked_for_where_a_file_has_none(tmp_path, monkeypatch):
    """YOLOv5 would name a stranger's classes after COCO's."""
    seen = {}
    fake = TwoBoxes()
    monkeypatch.setattr(detect, "load_backend", lambda *args, **options: seen.update(options) or fake)
    run(tmp_path, image(tmp_path / "a.png"), nosave=True)
    assert seen["names"] is None


def test_checkpoint_end_to_end_with_feature_maps_and_update(tmp_path, checkpoint):
    size = checkpoint.stat().st_size
    before = load_checkpoint(checkpoint).model.state_dict()
    result = run(
        tmp_path,
        image(tmp_path / "a.png"),
        weights=str(checkpoint),
        device="cpu",
        conf_thres=0.0,
        max_det=5,
        augment=True,
        visualize=True,
        update=True,
    )
    assert result.detections[0].boxes.shape == (5, 6)
    maps = sorted((result.save_dir / "features" / "a").glob("*.npy"))
    assert [m.name for m in maps] == [f"layer{i:02d}_Conv.npy" for i in range(4)]
    assert np.load(maps[2]).shape == (8, 4, 8)  # the 32x64 letterbox at stride 8
    stripped = load_checkpoint(checkpoint)
    assert stripped.training is None and stripped.meta["epoch"] == 3
    assert all(torch.equal(before[k], v) for k, v in stripped.model.state_dict().items())
    assert checkpoint.stat().st_size < size - 3000


def test_every_stream_of_a_batch_has_its_feature_maps(tmp_path, checkpoint):
    with Camera(limit=12) as one, Camera(limit=12) as two:
        (tmp_path / "c.streams").write_text(f"{one.url('x')}\n{two.url('y')}\n")
        ends = [one.off_after(30), two.off_after(30)]
        options = {"device": "cpu", "nosave": True, "visualize": True, "stream_timeout": 1.5}
        result = run(tmp_path, tmp_path / "c.streams", weights=str(checkpoint), **options)
        for end in ends:
            end.join()
    folders = [path.name for path in (result.save_dir / "features").iterdir()]
    assert len(folders) == result.images >= 2
    for camera in (one, two):
        assert any(str(camera.port) in name for name in folders)


def test_networks_of_other_images_are_refused(tmp_path):
    """A checkpoint, an ensemble and an exported file for four channels; an ensemble of grey ones runs."""
    for channels in (1, 4):
        save_checkpoint(tmp_path / f"{channels}.pt", DetectionModel(TINY, ch=channels), meta={})
    four = str(tmp_path / "4.pt")
    (exported,) = export.run(weights=four, include=["torchscript"], imgsz=[64])
    picture = image(tmp_path / "a.png")
    for weights in (four, [four, four], str(exported.path)):
        with pytest.raises(UserError, match="takes 4 channels; images have 3"):
            run(tmp_path, picture, weights=weights, device="cpu")
    assert not (tmp_path / "runs").exists()
    grey = str(tmp_path / "1.pt")
    with pytest.raises(UserError, match=r"4\.pt: takes 4 channels, .*1\.pt takes 1"):
        run(tmp_path, picture, weights=[grey, four], device="cpu")
    assert run(tmp_path, picture, weights=[grey, grey], device="cpu", nosave=True).images == 1


@pytest.fixture
def signals():
    """Puts back what `detect.main` sets, which the processes of later tests would inherit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_command_line_ends_in_one_sentence(tmp_path, monkeypatch, capsys, signals):
    monkeypatch.setattr(sys, "argv", ["detect.py", "--weights", str(tmp_path / "none.pt"), "--img", "64"])
    with pytest.raises(SystemExit) as stop:
        guard(detect.main)
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "none.pt" in lines[0]


def test_json_is_coco_results_with_file_and_frame(tmp_path, backend):
    image(tmp_path / "in" / "007.png")
    video(tmp_path / "in" / "clip.mp4", 1)
    result = run(tmp_path, tmp_path / "in", save_json=True, nosave=True)
    assert files(result.save_dir) == ["predictions.json"]
    rows = json.loads((result.save_dir / "predictions.json").read_text())
    assert rows[0] == {
        "image_id": 7,
        "category_id": 1,
        "bbox": [75.0, 35.0, 50.0, 30.0],
        "score": 0.9,
        "file": str(tmp_path / "in" / "007.png"),
        "frame": 0,
        "category": "../dog",
    }
    assert [(r["image_id"], r["frame"]) for r in rows[2:]] == [("clip_1", 1)] * 2
    nothing = run(tmp_path, tmp_path / "in" / "007.png", save_json=True, nosave=True, conf_thres=0.95)
    assert json.loads((nothing.save_dir / "predictions.json").read_text()) == []


def test_two_streams_at_once_until_they_are_given_up(tmp_path, backend):
    with Camera(limit=12) as one, Camera(limit=20) as two:
        (tmp_path / "c.streams").write_text(f"{one.url('x')}\n{two.url('y')}\n")
        ends = [one.off_after(30), two.off_after(30)]  # each has broken off before that, by its limit
        result = run(tmp_path, tmp_path / "c.streams", stream_timeout=1.5, save_txt=True)
        for end in ends:
            end.join()
    names = [f"127.0.0.1_{camera.port}_{path}" for camera, path in ((one, "x"), (two, "y"))]
    seen = [
        sum(name in d.path.replace(":", "_").replace("/", "_") for d in result.detections) for name in names
    ]
    assert min(seen) >= 1 and sum(seen) == result.images == len(result.detections)
    assert result.found == 2 * result.images and set(result.drops) == {1, 2}
    for name, count in zip(names, seen):
        written, fps = frames_in(result.save_dir / f"{name}.mp4")
        assert written >= count and fps == pytest.approx(25)
        assert len(list((result.save_dir / "labels").glob(f"{name}_*.txt"))) == count


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("pause", [None, 0.0005, 0.01])
def test_ctrl_c_ends_a_stream_with_its_files_closed(tmp_path, checkpoint, pause):
    """A second signal, as `timeout` sends it, disturbs neither the closing nor Python's own end."""
    with Camera() as camera:
        options = (
            "--weights",
            checkpoint,
            "--source",
            camera.url(),
            "--project",
            tmp_path / "runs",
            "--save-json",
        )
        process = run_script(*options)
        lines = []
        for line in process.stdout:
            lines.append(line.decode())
            if "frame 5 " in lines[-1]:
                process.send_signal(signal.SIGINT)
                if pause is not None:
                    time.sleep(pause)
                    process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, lines
    assert not any("KeyboardInterrupt" in line or "terminate called" in line for line in lines), lines
    assert any("stopped from the keyboard" in line for line in lines), lines
    (saved,) = (tmp_path / "runs" / "exp").glob("*.mp4")
    assert frames_in(saved)[0] >= 5
    assert len(json.loads((tmp_path / "runs" / "exp" / "predictions.json").read_text())) >= 15
    assert not list((tmp_path / "runs" / "exp").glob(".*"))


def test_images_on_standard_input(tmp_path, checkpoint):
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    piped = io.BytesIO()
    for kind in ("JPEG", "PNG", "JPEG"):
        picture.save(piped, kind)
    process = run_script(
        *("--weights", checkpoint, "--source", "-", "--project", tmp_path / "runs", "--save-txt"),
        stdin=subprocess.PIPE,
    )
    output = process.communicate(piped.getvalue(), timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert files(tmp_path / "runs" / "exp") == [
        "labels/stdin_1.txt",
        "labels/stdin_2.txt",
        "labels/stdin_3.txt",
        "stdin_1.jpg",
        "stdin_2.png",
        "stdin_3.jpg",
    ]


def test_a_reader_of_the_output_that_goes_away_is_no_error(tmp_path, checkpoint):
    """`python detect.py ... | head -1`."""
    for number in range(30):
        image(tmp_path / "in" / f"{number}.png")
    process = run_script(
        *("--weights", checkpoint, "--source", tmp_path / "in", "--project", tmp_path / "runs"),
        *("--save-txt", "--nosave"),
        separate=True,
    )
    assert process.stdout.readline().startswith(b"1/30 ")
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0
    assert len(files(tmp_path / "runs" / "exp" / "labels")) == 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_that_are_no_text_and_names_as_long_as_can_be(tmp_path, checkpoint):
    folder = os.fsencode(tmp_path / "in") + b"/"
    longest = b"x" * 240 + b".png"
    image(tmp_path / "in" / "a.png")
    for name in (b"\xff.png", longest):
        Path(os.fsdecode(folder + name)).write_bytes((tmp_path / "in" / "a.png").read_bytes())
    os.rename(video(tmp_path / "clip.mp4"), folder + b"\xfe.mp4")
    process = run_script(
        *("--weights", checkpoint, "--source", tmp_path / "in", "--project", tmp_path / "runs"),
        *("--save-txt", "--save-csv", "--save-json", "--save-crop"),
    )
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    written = os.listdir(os.fsencode(tmp_path / "runs" / "exp"))
    assert {b"a.png", b"\xff.png", longest, b"\xfe.mp4"} <= set(written)
    rows = json.loads((tmp_path / "runs" / "exp" / "predictions.json").read_text())
    assert {os.fsencode(Path(row["file"]).name) for row in rows} == {
        b"a.png",
        b"\xff.png",
        longest,
        b"\xfe.mp4",
    }
    assert "\\udcff.png," in (tmp_path / "runs" / "exp" / "predictions.csv").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM for another process")
def test_a_polite_kill_ends_the_wait_for_standard_input(tmp_path, checkpoint):
    """Nothing more comes in the pipe, and its other end stays open."""
    options = ("--weights", checkpoint, "--source", "-", "--project", tmp_path / "runs", "--nosave")
    process = run_script(*options, stdin=subprocess.PIPE)
    process.stdin.write(cv2.imencode(".jpg", np.full((40, 60, 3), 120, np.uint8))[1].tobytes())
    process.stdin.flush()
    first = process.stdout.readline().decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130 and first.startswith("1/? stdin_1.jpg")
    assert process.stdout.read().decode().splitlines() == ["error: stopped from the keyboard"]
    process.stdin.close()


def test_addresses_of_files_are_downloaded_to_a_temporary_place(tmp_path, backend):
    image(tmp_path / "web" / "a b.png")
    video(tmp_path / "web" / "clip.mp4", 3)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        (tmp_path / "list.txt").write_text(f"{base}/a%20b.png?key=1\n{base}/clip.mp4\n{base}/none.jpg\n")
        result = run(tmp_path, tmp_path / "list.txt")
        with pytest.raises(UserError, match="not one of 1 files"):
            run(tmp_path, f"{base}/none.jpg")
        server.shutdown()
    assert files(result.save_dir) == ["a_b.png", "clip.mp4"]
    assert [(d.path, d.frame) for d in result.detections] == [
        (f"{base}/a%20b.png?key=1", 0),
        *((f"{base}/clip.mp4", k) for k in (1, 2, 3)),
    ]
    assert not list((tmp_path / "web").glob("*.part"))


@pytest.mark.parametrize("kind", ["grey", "16-bit", "RGBA", "CMYK", "rotated"])
def test_unusual_images_are_read_rightly(tmp_path, backend, kind):
    """Upright, 200x100, and of the colour that was stored: the drawn picture's corner is free of boxes."""
    from PIL import Image

    path = tmp_path / f"a.{'jpg' if kind in ('CMYK', 'rotated') else 'png'}"
    if kind == "grey":
        Image.new("L", (200, 100), 120).save(path)
    elif kind == "16-bit":
        Image.fromarray(np.full((100, 200), 120 << 8, np.uint16)).save(path)
    elif kind == "RGBA":
        Image.new("RGBA", (200, 100), (120, 120, 120, 0)).save(path)
    elif kind == "CMYK":
        Image.new("CMYK", (200, 100), (0, 0, 0, 135)).save(path, quality=100)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (100, 200), (120, 120, 120)).save(path, exif=exif, quality=100)
    result = run(tmp_path, path)
    assert result.detections[0].boxes[0, :4].tolist() == [75, 35, 125, 65]
    drawn = cv2.imread(str(result.save_dir / path.name))
    assert drawn.shape == (100, 200, 3)
    np.testing.assert_allclose(drawn[80:, 160:], 120, atol=2)


def test_an_error_of_the_writing_thread_reaches_the_user(tmp_path, backend, monkeypatch):
    (tmp_path / "runs" / "exp").mkdir(parents=True)
    (tmp_path / "runs" / "exp" / "labels").write_text("a file where a folder is needed")
    with pytest.raises(OSError) as error:  # guard() makes a sentence of it
        run(tmp_path, video(tmp_path / "clip.mp4", 30), save_txt=True, exist_ok=True)
    assert "labels" in str(error.value.filename)


def test_tiles_find_what_the_whole_image_finds_and_more_and_say_the_image_s_size(
    checkpoint, tmp_path, caplog
):
    source = str(tmp_path / "large.png")
    picture = np.random.default_rng(0).integers(0, 255, (150, 260, 3), np.uint8)
    cv2.imwrite(source, picture)
    common = {"weights": str(checkpoint), "source": source, "imgsz": 64, "conf_thres": 0.0, "nosave": True}
    common |= {"project": str(tmp_path / "runs"), "device": "cpu", "max_det": 5000}
    with caplog.at_level("INFO", logger="yolo"):
        tiled = detect.run(**common, tile=True, overlap=0.25)
    assert "large.png: 260x150, " in caplog.text and tiled.images == 1
    assert set(tiled.speed) == {"preprocess", "inference", "nms"}
    model = load_backend(str(checkpoint))
    detector = TiledDetector(
        model, NmsOptions(0.0, max_det=5000), Tiling.of(True, (64, 64), 16, overlap=0.25)
    )
    planes = picture[..., ::-1].transpose(2, 0, 1)
    expected = detector([planes], [((150, 260), UNSCALED)]).boxes[0]
    expected[:, :4] = expected[:, :4].round()
    assert len(expected) > 50 and np.array_equal(tiled.detections[0].boxes, expected.numpy())
    small = detect.run(**common | {"imgsz": 288}, tile=True)
    plain = detect.run(**common | {"imgsz": 288})
    assert np.array_equal(small.detections[0].boxes, plain.detections[0].boxes), "it fits into one tile"


def test_tiles_of_a_file_of_fixed_size_and_batch(backend, tmp_path):
    backend.fixed_size, backend.fixed_batch = (64, 96), 4
    detect.run(
        weights="x.pt", source=image(tmp_path / "a.png", 150, 200), tile=True, project=str(tmp_path / "r")
    )
    assert set(backend.shapes) == {(3, 64, 96)} and len(backend.shapes) == 1 + 3  # 9 tiles, the whole image


def test_videos_are_cut_into_tiles(backend, tmp_path):
    backend.names = {0: "cat", 1: "dog"}
    result = detect.run(
        weights="x.pt", source=video(tmp_path / "v.mp4"), imgsz=64, tile=64, project=str(tmp_path / "r")
    )
    assert result.images == 6 and frames_in(result.save_dir / "v.mp4")[0] == 6
    assert result.found > 6 * 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"overlap": 0.3}, "--overlap: says how far tiles overlap; add --tile"),
        ({"tile": True, "visualize": True}, "--visualize with --tile: .*; use one of the two"),
        ({"tile": 5}, "--tile 5: must be at least 32 pixels"),
    ],
)
def test_tiles_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        detect.run(source="x.jpg", weights="x.pt", **options)


class Mover(TwoBoxes):
    """Finds two boxes that move to the right by 3 letterbox pixels a frame."""

    def _run(self, images, augment):
        rows = torch.tensor([self.rows] * len(images))
        rows[..., 0] += 3 * len(self.shapes)
        self.shapes.append(tuple(images.shape[1:]))
        return rows


def test_tracks_are_drawn_written_and_counted(monkeypatch, tmp_path):
    pytest.importorskip("trackers")
    moving = Mover({0: "cat", 1: "dog"})
    monkeypatch.setattr(detect, "load_backend", lambda *args, **options: moving)
    source = video(tmp_path / "v.mp4", frames=8)
    common = {"weights": "x.pt", "source": source, "imgsz": 64, "project": str(tmp_path / "r")}
    common |= {"save_txt": True, "save_conf": True, "save_csv": True, "save_json": True}
    result = detect.run(**common, track=True, count_line="147,0,147,100")
    assert frames_in(result.save_dir / "v.mp4")[0] == result.images == 8
    ids = np.array([found.ids for found in result.detections])
    assert ids[0].tolist() == [-1, -1] and ids[1:].tolist() == [[0, 1]] * 7
    (count,) = result.counts
    assert (count["in"], count["out"]) == (1, 0) and count["classes"] == {"dog": {"in": 1, "out": 0}}
    assert json.loads((result.save_dir / "counts.json").read_text())[0]["in"] == 1
    rows = [line.split() for line in (result.save_dir / "labels" / "v_8.txt").read_text().splitlines()]
    assert [(row[0], row[6]) for row in rows] == [("1", "0"), ("0", "1")]
    assert (result.save_dir / "predictions.csv").read_text().splitlines()[::16] == [
        "Image Name,Prediction,Confidence,Track",
        "v.mp4,cat,0.5000,1",
    ]
    written = json.loads((result.save_dir / "predictions.json").read_text())
    assert [row["track_id"] for row in written] == [-1, -1, *[0, 1] * 7]
    plain = detect.run(**common)
    assert plain.detections[0].ids is None and plain.counts == []
    assert "track_id" not in json.loads((plain.save_dir / "predictions.json").read_text())[0]


def test_a_tracked_object_has_one_box():
    assert detect.DetectOptions(track=True).agnostic_nms and not detect.DetectOptions().agnostic_nms


def test_what_cannot_be_tracked_is_refused(backend, tmp_path):
    with pytest.raises(UserError, match="--count-line: counts objects that are followed; add --track"):
        detect.run(source="x.mp4", weights="x.pt", count_line="0,0,1,1")
    pytest.importorskip("trackers")
    with pytest.raises(UserError, match="a.png: is a single image"):
        detect.run(source=image(tmp_path / "a.png"), weights="x.pt", track=True, project=str(tmp_path / "r"))
    assert not list((tmp_path / "r").glob("exp*"))
