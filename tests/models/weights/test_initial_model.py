"""What a training starts from: which weights are meant, what is carried over, what is refused first."""

import pytest
import torch

from models.weights.checkpoint import save_checkpoint
from models.weights.initial_model import check_config, start_model, starting_weights
from models.yolo import DetectionModel
from tests.tiny_set import TINY_MODEL
from utils.errors import UserError
from utils.files import save_yaml

NAMES = {0: "cat", 1: "dog", 2: "cow"}


def test_a_yaml_alone_starts_from_scratch_and_nothing_at_all_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert starting_weights("yolov5n.yaml", None) == ""
    with pytest.raises(UserError, match="neither --cfg nor --weights"):
        starting_weights("", None)


def test_a_wrong_yaml_is_refused_before_any_data_are_fetched(tmp_path):
    save_yaml(tmp_path / "bad.yaml", TINY_MODEL | {"backbone": [[-1, 1, "Conw", [8, 3, 2]]]})
    with pytest.raises(UserError, match="unknown block 'Conw'"):
        check_config(str(tmp_path / "bad.yaml"), "")


def test_the_data_decide_the_head_and_weights_that_fit_are_carried_over(tmp_path):
    save_yaml(tmp_path / "tiny.yaml", TINY_MODEL)
    trained = DetectionModel(str(tmp_path / "tiny.yaml"), nc=1)
    save_checkpoint(tmp_path / "a.pt", trained, meta={}, half=False)
    model = start_model(str(tmp_path / "tiny.yaml"), str(tmp_path / "a.pt"), names=NAMES, seed=1)
    assert model.nc == 3 and model.names == NAMES
    key = next(iter(trained.state_dict()))
    assert torch.equal(model.state_dict()[key], trained.state_dict()[key])


def test_equal_seeds_start_equal(tmp_path):
    save_yaml(tmp_path / "tiny.yaml", TINY_MODEL)
    one, same, other = (start_model(str(tmp_path / "tiny.yaml"), "", names=NAMES, seed=s) for s in (4, 4, 5))
    states = [torch.cat([v.flatten().float() for v in m.state_dict().values()]) for m in (one, same, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
