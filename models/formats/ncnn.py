"""Export to and run ncnn, a `_ncnn_model` folder written by pnnx.

It holds model.ncnn.param, model.ncnn.bin and metadata.yaml.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.formats.base import OpenOptions, register_format
from models.formats.embedded import EmbeddedBackend, check_digest, file_metadata, plain_network
from models.formats.exporter import Exporter, Job, Untyped, quiet, register_exporter, require
from utils.errors import UserError
from utils.files import load_yaml, save_yaml

PARAM, BIN, _METADATA = "model.ncnn.param", "model.ncnn.bin", "metadata.yaml"


def write_ncnn(job: Job, path: Path) -> None:
    """Trace the model and let pnnx convert the trace into ncnn's layers.

    The grid of cells is folded into constants, so a file has one size. pnnx's own Python function is not
    used: it runs the code that pnnx writes.
    """
    pnnx = require("pnnx", "--include ncnn")
    require("ncnn", "--include ncnn")
    model, example = plain_network(job)
    with tempfile.TemporaryDirectory(prefix="pnnx.") as name:
        folder = Path(name)
        with torch.no_grad(), quiet(job.verbose):
            script = torch.jit.trace(model, example, check_trace=False, strict=False)
            script.save(str(folder / "model.pt"))
        shape = ",".join(map(str, example.shape))
        half = int(job.metadata.precision == "fp16")
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]f32", f"fp16={half}", "device=cpu"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if done.returncode or not (folder / BIN).is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pnnx stopped with exit code {done.returncode} ({last[:200]})")
        if unknown := foreign_layers(folder / PARAM):
            raise UserError(f"pnnx knows no ncnn layer for {', '.join(unknown)}")
        path.mkdir()
        for file in (PARAM, BIN):
            shutil.copyfile(folder / file, path / file)
    save_yaml(path / _METADATA, file_metadata(job, _content(path)))


def foreign_layers(param: Path) -> list[str]:
    """Return layers that pnnx left as torch's, such as Tensor.reshape.

    ncnn's own names have no dot.
    """
    lines = param.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
    kinds = {line.split(maxsplit=1)[0] for line in lines if line.strip()}
    return sorted(kind for kind in kinds if "." in kind)


def _content(folder: Path) -> bytes:
    """Return both files as one, for their check sum.

    Raises:
        UserError: one of them is not there.
    """
    try:
        return b"".join((folder / file).read_bytes() for file in (PARAM, BIN))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder}: is not a whole ncnn model ({Path(error.filename).name} is missing); export it again"
        ) from None


@register_format("_ncnn_model")
class NcnnBackend(EmbeddedBackend):
    """Run an exported ncnn folder."""

    title = "ncnn"

    def __init__(self, path: Path, device: torch.device, options: OpenOptions) -> None:
        ncnn = require("ncnn", str(path))
        content = _content(path)
        if not (path / _METADATA).is_file():
            raise UserError(
                f"{path}: carries no metadata ({_METADATA} is missing), so this project did not export it; "
                "export the checkpoint again"
            )
        raw = load_yaml(path / _METADATA)
        super().__init__(path, device, options, raw)
        check_digest(path, raw, content)
        self.network = ncnn.Net()
        _set_options(self.network.opt, exact=self.precision == "fp32")
        if unknown := foreign_layers(path / PARAM):
            raise UserError(
                f"{path}: has layers that ncnn does not know ({', '.join(unknown)}); export it again"
            )
        loaded = self.network.load_param(str(path / PARAM)) or self.network.load_model(str(path / BIN))
        inputs, outputs = self.network.input_names(), self.network.output_names()
        if loaded or len(inputs) != 1 or len(outputs) != 1:
            raise UserError(f"{path}: is not an ncnn model of ours or is damaged; export it again")
        self.ends: tuple[str, str] = (inputs[0], outputs[0])
        self.mat: Callable[[np.ndarray], Untyped] = ncnn.Mat

    def _run(self, images: Tensor, augment: bool) -> Tensor:
        outputs = [self._run_one(np.ascontiguousarray(image)) for image in images.numpy()]
        return torch.from_numpy(np.stack(outputs))

    def _run_one(self, image: np.ndarray) -> np.ndarray:
        """Run one image: (ch, H, W) -> (boxes, 5 + nc)."""
        extractor = self.network.create_extractor()
        taken = extractor.input(self.ends[0], self.mat(image))
        failed, output = extractor.extract(self.ends[1])
        if taken or failed:
            raise UserError(f"{self.path}: ncnn could not run it (code {taken or failed}); export it again")
        return np.array(output)


def _set_options(options: Untyped, *, exact: bool) -> None:
    """Set PyTorch's number of threads, the CPU, and float32 where `exact`."""
    options.num_threads = torch.get_num_threads()
    options.use_vulkan_compute = False
    if exact:
        for kind in ("fp16", "bf16"):
            for use in ("packed", "storage", "arithmetic"):
                if hasattr(options, f"use_{kind}_{use}"):  # there is no arithmetic in bfloat16
                    setattr(options, f"use_{kind}_{use}", False)


register_exporter(Exporter("ncnn", "ncnn", write_ncnn, {"fp32": "_ncnn_model", "fp16": "_ncnn_model"}))
