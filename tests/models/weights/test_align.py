"""Adapters learn the maps of the neck's own network: the error falls, equal seeds give equal weights."""

import copy

import cv2
import pytest
import torch

import models.weights.align as align
from models.weights.align import align_adapters, row_maps
from models.weights.checkpoint import load_checkpoint
from models.weights.neck import load_neck
from tests.tiny_necks import CARRY, JOINTS, build, write_pictures, write_source
from utils.errors import UserError
from utils.letterbox import letterbox_tensor

NAMES = {0: "disc", 1: "star"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A source, and images of blocks of colour that its backbone tells apart."""
    folder = tmp_path_factory.mktemp("align")
    write_source(folder)
    write_pictures(folder, 12)
    return folder


def paths(folder):
    return [str(path) for path in sorted(folder.glob("*.png"))]


def carried(folder, cfg=CARRY):
    model = build(cfg, seed=1)
    load_neck(model, folder / "source.pt", NAMES)
    return model


@torch.no_grad()
def unexplained(model, source, images):
    """What the report states, computed from the maps themselves."""
    batch = torch.cat([letterbox_tensor(cv2.imread(path), 64) for path in images])
    batch = torch.cat((batch, batch.flip(3)))
    own, other = row_maps(model.eval(), batch, set(JOINTS)), row_maps(source, batch, set(JOINTS.values()))
    found = {}
    for joint, tap in JOINTS.items():
        spread = (other[tap] - other[tap].mean((0, 2, 3), keepdim=True)).square().mean()
        found[int(model.rows[joint].stride)] = float((own[joint] - other[tap]).square().mean() / spread)
    return found


def test_the_error_falls_and_is_the_one_reported(folder):
    model, source = carried(folder), load_checkpoint(folder / "source.pt").model
    before = unexplained(model, source, paths(folder))
    report = align_adapters(model, folder / "source.pt", paths(folder), 64, device=CPU)
    after = unexplained(model, source, paths(folder))
    assert report.images == 12 and list(report.unexplained) == [8, 16]
    for stride, share in report.unexplained.items():
        assert share == pytest.approx(after[stride], rel=0.02)
        assert share < 0.75 and before[stride] > 1.5 * share
    assert "12 images" in str(report) and f"{report.unexplained[8]:.3f} at stride 8" in str(report)


def test_nothing_but_the_adapters_changes_and_equal_seeds_are_equal(folder):
    models = [carried(folder) for _ in range(3)]
    before = copy.deepcopy(models[0].state_dict())
    for model, seed in zip(models, (5, 5, 6)):
        model.train()
        align_adapters(model, folder / "source.pt", paths(folder), 64, device=CPU, seed=seed)
        assert model.training
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in before)
    changed = {key for key in before if not torch.equal(states[0][key], before[key])}
    assert {int(key.split(".")[1]) for key in changed} == set(JOINTS)
    assert any(not torch.equal(states[0][key], states[2][key]) for key in changed)


def test_too_many_images_for_the_memory_are_thinned_out_by_the_seed(folder, monkeypatch, log):
    log.set_level("INFO", "yolo")
    # 64 px: maps of 32 + 24 channels at 8 x 8 and of 40 + 32 at 4 x 4, in float16, and their mirror images.
    each = (56 * 64 + 72 * 16) * 2 * 2
    monkeypatch.setattr(align, "_MOST_BYTES", 5 * each)
    report = align_adapters(carried(folder), folder / "source.pt", paths(folder), 64, device=CPU)
    assert report.images == 5 and "5 of 12 images, whose maps fit into memory, are used" in log.text


def test_an_unreadable_image_costs_itself_and_none_at_all_is_refused(folder, tmp_path, log):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = str(tmp_path / "bad.png")
    report = align_adapters(carried(folder), folder / "source.pt", [*paths(folder)[:3], bad], 64, device=CPU)
    assert report.images == 3 and f"left out: {bad}" in log.text
    with pytest.raises(UserError, match="--align: none of the 1 images can be read"):
        align_adapters(carried(folder), folder / "source.pt", [bad], 64, device=CPU)


def test_an_adapter_of_several_layers_learns_too(folder):
    cfg = copy.deepcopy(CARRY)
    cfg["head"][4][3] = [24, 3, 1]
    report = align_adapters(carried(folder, cfg), folder / "source.pt", paths(folder), 64, device=CPU)
    assert report.unexplained[8] < 0.75


def test_a_joint_without_an_adapter_is_refused(folder):
    cfg = copy.deepcopy(CARRY)
    cfg["backbone"][2][3][0] = 24  # as many channels as the neck wants, so it could do without a row
    cfg["head"][4] = [2, 1, "nn.Identity", []]
    cfg["head"][5] = [[-2, 2], 1, "Concat", [1]]
    model = carried(folder, cfg)
    with pytest.raises(UserError, match=r"backbone row 3 .* such as \[1, 1, Conv, \[24, 1, 1\]\]"):
        align_adapters(model, folder / "source.pt", paths(folder), 64, device=CPU)
