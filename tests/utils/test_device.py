"""Devices: absent ones are refused in a sentence, precision follows the device, randomness is contained."""

import os

import pytest
import torch

from utils import device
from utils.errors import UserError


def test_cpu_is_always_there():
    assert device.select_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("spec", ["tpu", "0;1", "-1"])
def test_a_name_that_is_no_device_is_refused(spec):
    with pytest.raises(UserError, match="not a device"):
        device.select_device(spec)


def test_an_absent_gpu_is_refused():
    with pytest.raises(UserError, match="this machine has"):
        device.select_device("97")


@pytest.mark.parametrize(
    ("spec", "gpus", "rank", "started", "says"),
    [
        ("", 1, 1, 2, "this machine has 1 CUDA device(s) for 2 processes"),
        ("", 1, 0, 2, "--nproc_per_node 1"),  # the first process, which has one, says so too
        ("cuda", 2, 2, None, "for 3 processes"),  # a launcher that does not tell how many it started
        ("0", 4, 1, 2, "--device 0 for 2 processes"),
        ("0,0", 4, 1, 2, "--device 0,0 for 2 processes"),
        ("1,2", 4, 2, 3, "start with --nproc_per_node 2"),
    ],
)
def test_two_processes_never_share_a_gpu(monkeypatch, spec, gpus, rank, started, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if started:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(started))
    with pytest.raises(UserError) as caught:
        device.select_device(spec)
    assert says in str(caught.value) and "--device cpu" in str(caught.value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device.select_device() == torch.device("cuda", 1)
    assert device.select_device("3,2") == torch.device("cuda", 2)


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_cuda_gets_deterministic_kernels_for_a_run_and_no_longer(monkeypatch, given):
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(ZeroDivisionError), device.repeatable(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark and os.environ[name] == (given or ":4096:8")
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark and os.environ.get(name) == given
    with device.repeatable(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("mode", "dtype"), [("off", None), ("bf16", torch.bfloat16)])
def test_amp_modes_on_cpu(mode, dtype):
    assert device.amp_dtype(mode, torch.device("cpu")) is dtype


def test_amp_auto_follows_the_cpu(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(device, "cpu_gains_by_bf16", lambda has=has: has)
        assert device.amp_dtype("auto", torch.device("cpu")) is (torch.bfloat16 if has else None)


@pytest.mark.parametrize(
    ("name", "amx", "avx512_bf16", "gains"),
    [
        ("Intel(R) Xeon(R) Processor", False, True, False),
        ("Intel(R) Xeon(R) Platinum 8480+", True, True, True),
        ("AMD EPYC 9R14", False, True, True),
        ("AMD EPYC 7763", False, False, False),
    ],
)
def test_bfloat16_is_for_cpus_that_gain_by_it(monkeypatch, name, amx, avx512_bf16, gains):
    monkeypatch.setattr(device, "cpu_name", lambda: name)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert device.cpu_gains_by_bf16() is gains


@pytest.mark.parametrize("mode", ["fp16", "int4"])
def test_amp_modes_that_cannot_be_are_refused(mode):
    with pytest.raises(UserError, match=f"--amp {mode}"):
        device.amp_dtype(mode, torch.device("cpu"))


def test_autocast_reduces_a_product_and_none_leaves_it():
    x = torch.ones(2, 2)
    with device.autocast(torch.device("cpu"), torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
    with device.autocast(torch.device("cpu"), None):
        assert (x @ x).dtype is torch.float32


def test_seeded_is_repeatable_and_leaves_the_global_state():
    before = torch.get_rng_state()
    with device.seeded(3):
        first = torch.rand(4)
    with device.seeded(3):
        assert torch.equal(first, torch.rand(4))
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_come_from_the_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (device.rank(), device.local_rank(), device.world_size(), device.is_main()) == (0, 0, 1, True)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert (device.rank(), device.local_rank(), device.world_size(), device.is_main()) == (3, 1, 4, False)


def test_hardware_line_and_versions_name_what_is_here():
    assert "threads" in device.describe(torch.device("cpu"))
    assert device.versions()["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 6),
        ({"cpu.max": "broken"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "0\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, 6),
    ],
)
def test_a_container_grants_fewer_processors_than_it_shows(tmp_path, monkeypatch, files, cpus):
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert device.available_cpus() == cpus


def test_no_more_threads_than_processors(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        monkeypatch.setattr(device, "available_cpus", lambda: 8)
        device.limit_threads()
        assert torch.get_num_threads() == 5
        monkeypatch.setattr(device, "available_cpus", lambda: 3)
        device.limit_threads()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
