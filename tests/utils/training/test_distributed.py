"""utils/training/distributed.py; tests/test_train.py trains in two processes."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from models.yolo import DetectionModel
from tests.tiny_set import TINY_MODEL
from utils.errors import UserError
from utils.training.distributed import (
    GroupBatchNorm,
    has_lost_another,
    idle_parameters,
    in_order,
    mean_counts,
    mean_over_ranks,
    shared_file,
    synchronise_norms,
)


def test_parameters_without_a_gradient_are_found_and_the_model_is_left_as_it_was():
    model = DetectionModel(TINY_MODEL).eval()
    assert idle_parameters(model) == []
    model.model[1].idle = nn.Linear(4, 4)
    model.model[0].conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert idle_parameters(model) == ["model.1.idle.weight", "model.1.idle.bias"]
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    assert idle_parameters(model) == []


@pytest.mark.parametrize(("device", "kind"), [("cuda", nn.SyncBatchNorm), ("cpu", GroupBatchNorm)])
def test_synchronised_norms_compute_what_the_norms_did(device: str, kind: type[nn.Module]):
    images = torch.rand(2, 3, 64, 64)
    model = DetectionModel(TINY_MODEL).eval()
    wanted, names = model(images)[0], list(model.state_dict())
    synchronise_norms(model, torch.device(device))
    assert sum(isinstance(m, kind) for m in model.modules()) == 4
    assert torch.equal(model(images)[0], wanted) and list(model.state_dict()) == names


def test_the_activation_inside_timms_norms_is_kept():
    timm = pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    net = timm.create_model("mobilenetv3_small_050", pretrained=False, features_only=True).eval()
    images = torch.rand(1, 3, 64, 64)
    wanted = net(images)
    synchronise_norms(net, torch.device("cuda"))
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in net.modules()) > 30
    assert all(torch.equal(a, b) for a, b in zip(net(images), wanted))


def test_a_norm_that_does_more_is_not_replaced():
    class Cube(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) ** 3

    with pytest.raises(UserError, match="--sync-bn: 1 is a Cube, which has no synchronised form"):
        synchronise_norms(nn.Sequential(nn.Conv2d(3, 4, 1), Cube(4)), torch.device("cpu"))


def test_alone_nothing_is_shared(tmp_path):
    assert mean_over_ranks([1.0, 2.0], 0.0) == (1.0, 2.0)
    assert mean_counts([3, 0], torch.device("cpu")) == [3.0, 0.0]
    assert list(in_order(range(5), 2)) == [0, 1, 2, 3, 4]
    with shared_file(tmp_path / "a") as file:
        assert file == tmp_path / "a"
    assert not has_lost_another(RuntimeError("Connection closed by peer"))


def _in_three(rank: int, folder: str) -> None:
    """Be one of three processes, and write down what each function gave."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    torch.manual_seed(0)
    # Of 11 items in batches of 6, each process has every third of a batch.
    mine = [k for start in (0, 6) for k in list(range(11))[start : start + 6][rank::3]]
    norm, images = GroupBatchNorm(2), torch.rand(6, 2, 4, 4, dtype=torch.float64)
    own = images[rank * 2 : rank * 2 + 2].requires_grad_()
    weights = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    (norm.double()(own) * weights[rank * 2 : rank * 2 + 2]).sum().backward()
    whole, same = nn.BatchNorm2d(2).double(), images.detach().clone().requires_grad_()
    (whole(same) * weights).sum().backward()
    with shared_file(Path(folder) / f"file{rank}") as file:  # only that of process 0 exists
        text = file.read_text()
    found = {
        "in_order": list(in_order(mine, 6)),
        "means": mean_over_ranks([float(rank), 1.0], weight=rank),
        "counts": mean_counts([rank, 3], torch.device("cpu")),
        "file": text,
        "gradient": float((own.grad - same.grad[rank * 2 : rank * 2 + 2]).abs().max()),
        "statistics": float((norm.running_var - whole.running_var).abs().max()),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_three_processes_share_what_one_would_have(tmp_path):
    (tmp_path / "file0").write_text("weights")
    torch.multiprocessing.spawn(_in_three, (str(tmp_path),), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)]
    assert [f["in_order"] for f in found] == [list(range(11)), [], []]
    for f in found:
        assert f["means"] == (pytest.approx(5 / 3), pytest.approx(1.0))
        assert f["counts"] == [1.0, 3.0] and f["file"] == "weights"
        assert f["gradient"] < 1e-6 and f["statistics"] < 1e-7  # the norm computes in float32
