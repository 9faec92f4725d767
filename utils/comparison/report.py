"""Write the files of a comparison: compare.csv, compare.md, pareto.png and index.html."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from utils.comparison.options import CompareOptions
from utils.comparison.page import Page, render
from utils.comparison.pareto import plot_pareto
from utils.comparison.table import NetRow, to_csv, to_markdown
from utils.dataset.config import DatasetConfig
from utils.device import describe, versions
from utils.files import atomic_text

LOGGER = logging.getLogger("yolo.compare")


def write_report(page: Page, folder: Path) -> None:
    """Write the page and its figures as files, and log the tables."""
    groups, failed, chart = page.groups, page.failed, folder / "pareto.png"
    sentences = [f"{name.capitalize()}: {text}." for name, text in page.facts.items()]
    atomic_text(folder / "compare.csv", to_csv(groups, failed))
    atomic_text(folder / "compare.md", to_markdown(groups, failed, sentences))
    plot_pareto(groups, chart)
    atomic_text(folder / "index.html", render(page, chart.read_bytes()))
    LOGGER.info("\n%s", to_markdown(groups, failed, ()))
    LOGGER.info("results saved to %s; open %s", folder, folder / "index.html")


def measurement_facts(
    opt: CompareOptions, data: DatasetConfig, images: int, device: torch.device, rows: Sequence[NetRow]
) -> dict[str, str]:
    """Return how, when and on what the figures were measured.

    Args:
        images: number of val images.
        device: of the latencies.
        rows: those with figures.
    """
    sizes = {row.imgsz for row in rows} or {opt.imgsz}
    size = f"{min(sizes)} px" if len(sizes) == 1 else "the size that its table names"
    return {
        "accuracy": f"best checkpoint in float32 on the {images} val images of {data.path.name} "
        f"({data.nc} classes), {size}",
        "latency": f"one image of {size}, batch 1, float32, BatchNorm fused, without NMS; median, 90th and "
        f"95th percentile of {opt.latency_runs} runs in rounds through all nets",
        "hardware": describe(device),
        "versions": ", ".join(f"{name} {number}" for name, number in package_versions().items()),
        "date": datetime.now().strftime("%Y-%m-%d"),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that latencies depend on."""
    found = versions()
    with contextlib.suppress(PackageNotFoundError):
        found["onnxruntime"] = version("onnxruntime")
    return found
