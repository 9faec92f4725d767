"""The packed image list: packing loses nothing, and workers share the memory."""

import pickle

import numpy as np
import pytest
import torch

from tests.utils.image_sets import make_dataset, write_yaml
from utils.dataset.config import load_dataset
from utils.dataset.image_set import Packed, Record, take_ragged
from utils.dataset.images import load_images

pytestmark = pytest.mark.usefixtures("own_folders")


def test_an_image_set_pickles_small_and_whole(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n", "0 .1 .1 .3 .1 .3 .5\n"])
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.path(1) == images.path(1)
    assert copy.labels(1).tolist() == images.labels(1).tolist()
    assert copy.segments(1)[0].tolist() == images.segments(1)[0].tolist()
    again = pickle.loads(pickle.dumps(copy))
    assert again.path(0) == images.path(0)


def test_a_spawned_worker_reads_the_set_from_shared_memory(tmp_path):
    root = make_dataset(tmp_path / "d", ["0 .5 .5 .2 .2\n", "1 .5 .5 .2 .2\n"])
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(type(images).path, (images, 1)) == images.path(1)
    arrays = images.__getstate__()["arrays"]
    assert all(tensor.is_shared() for tensor in arrays.values() if tensor.numel())


def test_packing_and_taking_are_inverse():
    rng = np.random.default_rng(0)
    records = []
    for i in range(50):
        k = int(rng.integers(0, 4))
        segments = [rng.random((int(rng.integers(3, 6)), 2), np.float32) for _ in range(k)] if i % 3 else []
        labels = rng.random((k, 5), np.float32)
        records.append(Record(i % 4, i, 2 * i, labels, segments, ["x"] * (i % 2)))
    packed = Packed.from_records([f"pfad/ä{i}.jpg" for i in range(50)], records)
    order = rng.permutation(50)[:30]
    taken = packed.take(order)
    for new, old in enumerate(order):
        a, b = taken.record(new), records[old]
        assert (a.status, a.width, a.height, a.messages) == (b.status, b.width, b.height, b.messages)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert len(a.segments) == len(b.segments)
        assert all(np.array_equal(x, y) for x, y in zip(a.segments, b.segments))


def test_take_ragged_of_nothing():
    values, offsets = take_ragged(np.arange(6), np.array([0, 2, 6]), np.array([], int))
    assert (values.tolist(), offsets.tolist()) == ([], [0])
