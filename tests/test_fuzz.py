"""benchmarks/fuzz.py in short: whatever a file holds ends in success or in one sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")  # in tests/requirements.txt

from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.fuzz import MEBIBYTES, SLOW, Outcome, Target, Targets, attempt

NAMES = [
    *(
        "model YAML",
        "data YAML",
        "hyp YAML",
        "label txt",
        "VOC XML",
        "COCO JSON",
        "label cache",
        "checkpoint",
    ),
    *("image bytes", "ONNX file", "TorchScript file"),
    *(f"OpenVINO {part}" for part in ("network", "weights", "metadata") if find_spec("openvino")),
]
# Inputs that once ended in a traceback, a hang or gigabytes.
_WIDE = b"nc: 1\nanchors: 1\nwidth_multiple: 1.0e+300\nbackbone: [[-1, 1, Conv, [64, 3, 2]]]\nhead: [x]"
_DOUBLED = b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 121))
FOUND: list[tuple[str, bytes]] = [
    *(
        ("model YAML", f"nc: {n}\nbackbone: []\nhead: []\n".encode())
        for n in ("1000000000", "0x" + "f" * 5000)
    ),
    ("model YAML", _WIDE),
    ("model YAML", b"a: &a [x]\n" + _DOUBLED),
    ("data YAML", b"path: tiny\ntrain: images/val\n2020-02-30: [RBC]\n"),
    ("data YAML", b"path: ~nobody-here/x\ntrain: ~nobody-here/y\nnames: [a]\n"),
    ("data YAML", b"path: 0x" + b"f" * 5000 + b"\ntrain: x\nnames: [a]\n"),
    ("data YAML", b"train: x\n!!timestamp x: y\n"),
    ("data YAML", b"train: x\nnames: [a]\nkpt_shape: [0x" + b"f" * 5000 + b", 3]\n"),
    ("data YAML", b"train: [x\0]\nnames: [a]\n"),
    ("hyp YAML", b"lr0: " + b"9" * 4000 + b"\n"),
    ("hyp YAML", b"- " + b"[" * 100_000),
    ("hyp YAML", b"a: [" + b"1, " * 300_000 + b"]"),
    ("hyp YAML", b"epochs: 3\nfreeze: [.inf]\n"),
    ("checkpoint", b"PK\x05\x06" + b"\xff" * 18),
    ("checkpoint", b"PK\x03\x04" + b"\0" * 60 + b"PK\x01\x02" + b"\xff" * 42 + b"PK\x05\x06" + b"\0" * 18),
    ("label cache", b"PK\x05\x06" + b"\0" * 18),
    ("OpenVINO metadata", b"names: [a, b]\nnms: {conf_thres: 0.25, iou_thres: 0.45, max_det: 300}\n"),
    ("OpenVINO metadata", b"names: [a, b]\nschema: 0x" + b"f" * 5000),
    ("OpenVINO metadata", b"names: [a]\n"),
]


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    with tempfile.TemporaryDirectory() as folder:
        yield {target.name: target for target in Targets(Path(folder)).all()}


def _good(outcome: Outcome) -> None:
    """Without the time, which is that of a machine shared with other tests."""
    assert outcome.failure in ("", SLOW), outcome
    assert outcome.mebibytes <= MEBIBYTES, outcome


def test_all_targets_are_here(targets: dict[str, Target]) -> None:
    assert list(targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_changed_files_end_in_a_sentence(name: str, targets: dict[str, Target], tmp_path: Path) -> None:
    target = targets[name]

    @settings(
        max_examples=40 if target.read.__name__ == "run_exported" else 150,  # two scripts run it each time
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def one(data: bytes) -> None:
        _good(attempt(target, data, tmp_path))

    one()


@pytest.mark.parametrize(("name", "data"), FOUND, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FOUND)])
def test_what_was_found_ends_in_a_sentence(
    name: str, data: bytes, targets: dict[str, Target], tmp_path: Path
) -> None:
    if name not in targets:
        pytest.skip("OpenVINO is not installed")
    _good(attempt(targets[name], data, tmp_path))
