"""Print what a report of a problem needs: versions, devices, threads and folders."""

from __future__ import annotations

import logging
import os
import platform

import torch

from utils.cli import Parser
from utils.comparison.report import package_versions
from utils.device import available_cpus, cpu_name, describe
from utils.files import ROOT, RUNS_DIR, datasets_dir, user_cache_dir
from utils.package import INSTALLED, PROJECT, VERSION

LOGGER = logging.getLogger("yolo.info")


def facts() -> dict[str, str]:
    """Return each fact by its name, as it is printed."""
    packages = package_versions()
    del packages[PROJECT]
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    amx, bf16 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    features = [torch.backends.cpu.get_cpu_capability(), *["AMX"] * amx, *["AVX512-BF16"] * bf16]
    omp = os.environ.get("OMP_NUM_THREADS", "not set")
    return {
        PROJECT: f"{VERSION}, {'installed' if INSTALLED else 'a checkout'} in {ROOT}",
        "system": f"{platform.platform()}, Python {packages.pop('python')}",
        "packages": ", ".join(f"{name} {number}" for name, number in packages.items()),
        "GPU": "; ".join(f"{gpu}: {describe(gpu)}" for gpu in gpus) or "none",
        "CPU": f"{cpu_name()}, {', '.join(features)}",
        "threads": f"{torch.get_num_threads()} on {available_cpus()} cores, OMP_NUM_THREADS {omp}",
        "runs": str(RUNS_DIR.absolute()),
        "data sets": str(datasets_dir()),
        "caches": str(user_cache_dir() / "yolo-*"),
    }


def main() -> None:
    """Print the facts, one a line."""
    Parser(description="Print versions, devices, threads and folders.").parse_args()
    for name, fact in facts().items():
        LOGGER.info("%-10s  %s", name, fact)
