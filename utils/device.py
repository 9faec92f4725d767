"""Say what the machine has and use it: devices, precision, memory, threads, ranks."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.errors import UserError
from utils.package import PROJECT, VERSION

LOGGER = logging.getLogger("yolo.device")

AMP_MODES = ("auto", "fp16", "bf16", "off")
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CGROUP = Path("/sys/fs/cgroup")


def select_device(spec: str = "") -> torch.device:
    """Return the device that `--device` names.

    '' is CUDA if there is any, else the CPU; others are 'cpu', '0', 'cuda:1', '0,1' and 'mps'.

    A list names the GPUs of a multi-process run: each process takes the one of its local rank.

    Raises:
        UserError: the device is not on this machine, the text names none, or two processes would share one.
    """
    name = str(spec).strip().lower().removeprefix("cuda:").replace(" ", "")
    if name in ("", "cuda"):
        if not torch.cuda.is_available():
            return torch.device("cpu")
        _one_each(f"this machine has {torch.cuda.device_count()} CUDA device(s)", torch.cuda.device_count())
        return torch.device("cuda", local_rank())
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has no Apple GPU; use --device cpu")
        return torch.device("mps")
    parts = name.split(",")
    if not all(part.isdigit() for part in parts):
        raise UserError(f"--device {spec}: not a device; use cpu, mps, 0, or a list such as 0,1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    absent = [part for part in parts if int(part) >= count]
    if absent:
        have = f"{count} CUDA device(s), numbered from 0" if count else "no CUDA device"
        raise UserError(f"--device {spec}: this machine has {have}; use --device cpu or a number that exists")
    if len(parts) > 1 and world_size() == 1:
        raise UserError(
            f"--device {spec}: several GPUs need one process each; start with "
            f"'torchrun --nproc_per_node {len(parts)} {Path(sys.argv[0]).name} ...' or name one GPU"
        )
    _one_each(f"--device {spec}", len(set(map(int, parts))))
    return torch.device("cuda", int(parts[local_rank()]))


def _one_each(where: str, gpus: int) -> None:
    """Refuse more processes on this machine than it has GPUs."""
    started = max(_environment_int("LOCAL_WORLD_SIZE", 1), local_rank() + 1)
    if started > gpus:
        raise UserError(
            f"{where} for {started} processes, and each needs a GPU of its own; "
            f"start with --nproc_per_node {gpus}, or use --device cpu"
        )


def cpu_gains_by_bf16() -> bool:
    """Return whether the CPU trains faster in bfloat16 than in float32.

    AMX does, and so does AVX512-BF16 on AMD. Intel's processors without AMX (or with it hidden by a virtual
    machine) have that instruction too, but train slower by it: the weight gradient of a dense 3x3 convolution
    takes four times as long as in float32, a 1x1 convolution 1.6 times.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "intel" not in cpu_name().lower()


def amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    """Return the reduced precision for `--amp`, or None for float32.

    'auto' is bfloat16 where CUDA has it natively, float16 on older GPUs, bfloat16 on a CPU that gains by
    it, else off.

    Raises:
        UserError: unknown mode, or float16 asked of a CPU.
    """
    if mode not in AMP_MODES:
        raise UserError(f"--amp {mode}: not a mode; use one of {', '.join(AMP_MODES)}")
    if mode == "off":
        return None
    if mode == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if mode == "auto" and torch.cuda.is_bf16_supported(False) else torch.float16
    if mode == "fp16":
        raise UserError(
            f"--amp fp16: float16 training needs a CUDA device, not {device.type}; use --amp auto"
        )
    return torch.bfloat16 if device.type == "cpu" and cpu_gains_by_bf16() else None


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Use mixed precision on `device`, or none when `dtype` is None."""
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield


def tune_allocator() -> bool:
    """Tell glibc to keep freed memory instead of returning it at every step.

    A network frees and takes the same large blocks at every step. On 2 cores this alone makes training 1.1
    to 2 times as fast, and detection 1.3 times.

    Returns:
        Whether it was applied. Only glibc has it; other systems are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    keep = 2**31 - 1
    # Every request is made, even if one is refused: each helps by itself.
    done = [mallopt(m_mmap_max, 0), mallopt(m_trim_threshold, keep), mallopt(m_top_pad, 64 << 20)]
    return all(done)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, so that a time can be taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Use PyTorch's deterministic kernels on CUDA, then restore its settings.

    A CPU needs nothing: equal runs with the same number of threads give equal bits. On CUDA, PyTorch warns of
    an operation without a deterministic kernel. A different GPU, library version or number of processes can
    give different bits.
    """
    if device.type != "cuda":
        yield
        return
    mode = torch.get_deterministic_debug_mode()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")  # what cuBLAS needs to be deterministic at all
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # it would choose kernels by their time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from `seed`, then restore the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _environment_int(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.lstrip("-").isdigit() else default


def rank() -> int:
    """Return this process's number in a run of torchrun; 0 in others."""
    return max(_environment_int("RANK", 0), 0)


def local_rank() -> int:
    """Return this process's number on this machine."""
    return max(_environment_int("LOCAL_RANK", 0), 0)


def world_size() -> int:
    """Return how many processes train together."""
    return max(_environment_int("WORLD_SIZE", 1), 1)


def is_main() -> bool:
    """Return whether this process validates, saves and logs."""
    return rank() == 0


def available_cpus() -> int:
    """Return how many processors this process may use.

    Containers and taskset make them fewer than the machine has.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _granted_cpus() or cpus)


def _granted_cpus() -> int:
    """Return how many processors' time a container may use, rounded up; 0 without a limit.

    `docker run --cpus 2` gives the time of two of them, but shows them all.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroups 2 and 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, " ".join((CGROUP / name).read_text() for name in names).split())
            return max(-(-quota // period), 0) if period > 0 else 0
    return 0


def limit_threads() -> None:
    """Compute with no more threads than this process has processors.

    More of them wait for each other: the library counts those of the machine, not those of the container.
    """
    if torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())


def cores_are_scarce(device: torch.device) -> bool:
    """Return whether a network on `device` needs every core: a CPU of one or two."""
    return device.type == "cpu" and available_cpus() <= 2


def cpu_name() -> str:
    """Return the processor's model name as the system states it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """Return one line on the hardware that a figure was measured on."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{cpu_name()}, {torch.get_num_threads()} threads of {available_cpus()} cores"


def versions() -> dict[str, str]:
    """Return the versions of this project and of the libraries that can change a result."""
    import cv2
    import numpy
    import torchvision

    return {
        PROJECT: VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
    }
