"""Official weights by name: fetched whole and as published, or not at all, and only when they were named."""

import hashlib
import socket
from pathlib import Path

import pytest
import torch

import compare
import detect
import export
import hubconf
import val
from models.weights import releases
from models.weights.checkpoint import save_checkpoint
from models.weights.initial_model import starting_weights
from models.yolo import DetectionModel
from tests.file_server import serve
from utils import downloads
from utils.errors import UserError

NAME = "yolov5n.pt"
TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 4,
    "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> bytes:
    """A small checkpoint in the place of the published file."""
    path = tmp_path_factory.mktemp("release") / NAME
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(path, DetectionModel(TINY), meta={})
    return path.read_bytes()


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    """A release that has that one file; the working folder is an empty one."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    asset = releases.Asset(len(published), hashlib.sha256(published).hexdigest())
    monkeypatch.setitem(releases.RELEASED, NAME, asset)
    with serve(published) as running:
        monkeypatch.setattr(releases, "RELEASE_URL", running.url)
        yield running


def test_a_name_is_fetched_once_with_its_licence_said(server, published, tmp_path, log):
    log.set_level("INFO", "yolo")
    releases.fetch_missing(NAME)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == published
    (line,) = {record.getMessage() for record in log.records}
    assert "AGPL-3.0" in line and f"{server.url}/{NAME}" in line and str(tmp_path / NAME) in line
    releases.fetch_missing(NAME)
    assert len(server.asked) == 1


def test_only_official_names_that_are_not_here_are_fetched(server, tmp_path):
    (tmp_path / "yolov5s.pt").write_bytes(b"mine")
    others = ("yolov5s.pt", "yolov5n6.onnx", "best.pt", "yolov5n", f"weights/{NAME}", tmp_path / NAME, "")
    releases.fetch_missing(*others)
    assert not server.asked and (tmp_path / "yolov5s.pt").read_bytes() == b"mine"


def test_a_broken_connection_is_taken_up_where_it_ended(server, published, tmp_path):
    server.break_after = len(published) // 2
    releases.fetch_missing(NAME)
    assert (tmp_path / NAME).read_bytes() == published
    assert server.asked[:2] == [None, f"bytes={len(published) // 2}-"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda body: body[:-1] + bytes([body[-1] ^ 1]), "its sha256 is"),
        (lambda body: body[:-100], r"the server offers \d+ bytes where \d+ are expected"),
        (lambda body: body + b"more", r"the server offers \d+ bytes where \d+ are expected"),
    ],
)
def test_another_file_than_the_published_one_is_refused(server, published, tmp_path, damage, sentence):
    server.body = damage(published)
    with pytest.raises(UserError, match=sentence):
        releases.fetch_missing(NAME)
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_told_length_is_refused_when_it_is_too_long(server, published, tmp_path):
    server.body, server.tell_length = published * 2, False
    with pytest.raises(UserError, match="longer than"):
        releases.fetch_missing(NAME)
    assert not (tmp_path / NAME).exists()


def test_without_a_network_one_sentence_says_from_where_to_where(server, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listened to: connections are refused
        monkeypatch.setattr(releases, "RELEASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UserError) as raised:
            releases.fetch_missing(NAME)
    sentence = str(raised.value)
    assert f"{releases.RELEASE_URL}/{NAME}: cannot be fetched" in sentence
    assert sentence.endswith(f"put the file at {tmp_path / NAME}")


def test_every_script_takes_a_name(server, tmp_path):
    """Each in a folder of its own, so that each of them fetches."""
    picture = str(Path(detect.__file__).parent / "data" / "images" / "digits_1.jpg")

    def trained():
        assert starting_weights("", NAME) == Path(NAME)

    def validated():
        with pytest.raises(UserError, match=r"absent\.yaml"):
            val.run(weights=NAME, data="absent.yaml", device="cpu")

    def detected():
        options = {"imgsz": 64, "device": "cpu", "nosave": True, "project": str(tmp_path / "runs")}
        assert detect.run(weights=NAME, source=picture, **options).images == 1

    def exported():
        (result,) = export.run(weights=NAME, imgsz=[64])
        assert result.path.resolve() == Path("yolov5n.torchscript").resolve()

    def loaded():
        assert hubconf.custom(NAME, device="cpu", _verbose=False).names == {0: "class0", 1: "class1"}

    def compared():
        with pytest.raises(UserError, match=r"absent\.yaml"):
            compare.run(weights=[NAME], data="absent.yaml", project=str(tmp_path / "runs"))

    scripts = (trained, validated, detected, exported, loaded, compared)
    for number, script in enumerate(scripts, 1):
        folder = tmp_path / script.__name__
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            script()
        assert (folder / NAME).is_file() and len(server.asked) == number


def test_nothing_is_fetched_for_a_name_that_nobody_typed(server, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.run_folder.RUNS", tmp_path / "no" / "runs")
    for script in (val, detect, export):
        with pytest.raises(UserError, match=r"no --weights are given .*train first \(python train.py\)"):
            script.run()
    with pytest.raises(UserError, match="neither --cfg nor --weights is given"):
        starting_weights("", None)
    assert not server.asked


def test_the_published_sizes_are_those_of_float16_weights():
    """The parameters of the fact sheet in two bytes each, and a few hundred kilobytes of structure."""
    parameters = {"n": 1872157, "s": 7235389, "m": 21190557, "l": 46563709, "x": 86749405}
    parameters |= {"n6": 3246940, "s6": 12626620, "m6": 35731932, "l6": 76770172, "x6": 140794780}
    assert {f"yolov5{size}.pt" for size in parameters} == set(releases.RELEASED)
    for size, count in parameters.items():
        extra = releases.RELEASED[f"yolov5{size}.pt"].size - 2 * count
        assert 300_000 < extra < 1_300_000, size
    assert len({asset.sha256 for asset in releases.RELEASED.values()}) == 10
    assert all(len(bytes.fromhex(asset.sha256)) == 32 for asset in releases.RELEASED.values())
