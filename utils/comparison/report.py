"""Write the files of a comparison: compare.csv, compare.md, pareto.png and index.html."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from utils.comparison.options import CompareOptions
from utils.comparison.page import Page, SampleImage, render
from utils.comparison.pareto import plot_pareto
from utils.comparison.table import Group, NetRow, to_csv, to_markdown
from utils.dataset.config import DatasetConfig
from utils.device import describe, versions
from utils.files import atomic_text

LOGGER = logging.getLogger("yolo.compare")


@dataclass(frozen=True)
class Report:
    """Hold the content of a comparison's files.

    Attributes:
        data: name of the data set.
        groups: the rows by their conditions.
        failed: nets without figures.
        samples: val images with detections.
        facts: name -> text: how, when and on what the figures were measured.
        command: the command line of the comparison.
    """

    data: str
    groups: Sequence[Group]
    failed: Sequence[NetRow]
    samples: Sequence[SampleImage]
    facts: Mapping[str, str]
    command: str

    def write(self, folder: Path) -> None:
        """Write all files, and log the table."""
        chart = folder / "pareto.png"
        sentences = [f"{name.capitalize()}: {text}." for name, text in self.facts.items()]
        atomic_text(folder / "compare.csv", to_csv(self.groups, self.failed))
        atomic_text(folder / "compare.md", to_markdown(self.groups, self.failed, sentences))
        plot_pareto(self.groups, chart)
        nets = sum(len(group.rows) for group in self.groups) + len(self.failed)
        page = Page(
            title=f"{nets} detectors on {self.data}",
            groups=self.groups,
            failed=self.failed,
            chart=chart.read_bytes(),
            samples=self.samples,
            facts=self.facts,
            command=self.command,
        )
        atomic_text(folder / "index.html", render(page))
        LOGGER.info("\n%s", to_markdown(self.groups, self.failed, ()))
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
