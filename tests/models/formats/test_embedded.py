"""What the formats for phones and boards share: ranges, check sums, one size on the CPU."""

import hashlib
import math
from pathlib import Path

import pytest
import torch

from models.formats.base import OpenOptions
from models.formats.embedded import (
    DIGEST,
    EmbeddedBackend,
    activation_range,
    check_digest,
    file_metadata,
    plain_network,
)
from models.formats.exporter import Job
from models.formats.metadata import Metadata
from tests.models.formats.small import PLAIN, SIZE, save_small
from utils.errors import UserError
from utils.package import PROJECT


def test_a_range_leaves_out_the_extremes_of_single_images_and_ends_at_its_bounds():
    lows, highs = [-1.0] * 99 + [-100.0], [2.0] * 99 + [100.0]
    assert activation_range(lows, highs) == (-1, 2)
    assert activation_range([-8.0], [4.0]) == (-8, 4)
    assert activation_range([-8.0], [4.0], (-6, math.inf)) == (-6, 4)


def test_the_check_sum_is_of_the_content():
    job = Job(None, torch.zeros(1, 3, 8, 8), Metadata({0: "a"}, 8, (8, 8), 1))
    values = file_metadata(job, b"network")
    assert values[DIGEST] == hashlib.sha256(b"network").hexdigest()
    assert values["names"] == {0: "a"} and values["imgsz"] == [8, 8]
    assert DIGEST not in file_metadata(job)


def test_content_that_was_changed_is_refused():
    written = {"author": PROJECT, DIGEST: hashlib.sha256(b"network").hexdigest()}
    check_digest(Path("a"), written, b"network")
    check_digest(Path("a"), {"author": "someone"}, b"network")
    for raw, content in ((written, b"netw0rk"), ({"author": PROJECT}, b"network")):
        with pytest.raises(UserError, match="a: is damaged .its check sum is not the one written"):
            check_digest(Path("a"), raw, content)


def test_the_network_has_row_major_memory_and_the_same_boxes(tmp_path):
    model = save_small(tmp_path / "best.pt", PLAIN).to(memory_format=torch.channels_last)
    model.detect.export = True
    example = torch.rand(1, 3, *SIZE).to(memory_format=torch.channels_last)
    network, images = plain_network(Job(model, example, Metadata({0: "a"}, 8)))
    assert images.is_contiguous() and all(weight.is_contiguous() for weight in network.parameters())
    assert not all(weight.is_contiguous() for weight in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(example), atol=1e-3, rtol=1e-4)


class Phone(EmbeddedBackend):
    """A format that is opened but never run."""

    title = "Phone"

    def _run(self, images, augment):
        raise NotImplementedError


def test_it_has_one_size_and_a_batch_of_one_on_the_cpu():
    raw = {"names": "['a']", "imgsz": "[64, 96]", "batch": "4", "dynamic": "true"}
    backend = Phone(Path("a"), torch.device("cpu"), OpenOptions(), raw)
    assert (backend.fixed_size, backend.fixed_batch) == ((64, 96), 1)
    with pytest.raises(UserError, match="Phone files run on the CPU here; use --device cpu"):
        Phone(Path("a"), torch.device("cuda"), OpenOptions(), raw)
    with pytest.raises(UserError, match="does not say its image size"):
        Phone(Path("a"), torch.device("cpu"), OpenOptions(), {"names": "['a']"})
