"""Batches: the same for any number of workers, boxes on their pixels, errors as sentences."""

import contextlib
import multiprocessing
import os

import numpy as np
import pytest
import torch

from tests.utils.image_sets import HYP, SIZES, make_dataset, write_images, write_yaml
from utils.dataset.batch_sampler import BatchSampler
from utils.dataset.config import load_dataset
from utils.dataset.detection_dataset import BatchOptions, DetectionDataset
from utils.dataset.image_set import ImageSet, Packed, ScanReport
from utils.dataset.images import load_images
from utils.dataset.loader import Loader, _Made, build_loader, count_workers, prefetch, workers_beside
from utils.errors import UserError

# Four workers are the point of a test here, however few processors there are.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("set"), SIZES, polygons=True)


def epochs(loader, numbers=(0, 1)):
    """All batches of some epochs."""
    found = []
    for epoch in numbers:
        loader.set_epoch(epoch)
        found += list(loader)
    loader.close()
    return found


def same(a, b):
    assert len(a) == len(b)
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[2] == y[2] and x[3] == y[3]
        for x, y in zip(a, b)
    )


def training_loader(images, workers, cache=None, seed=5):
    dataset = DetectionDataset(images, BatchOptions(64, 4, hyp=HYP, cache=cache, seed=seed))
    sampler = BatchSampler(len(images), 4, seed=seed, shuffle=True)
    return Loader(dataset, sampler, workers=workers)


@contextlib.contextmanager
def started_by(method):
    """How processes are started inside the block."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.fixture(scope="module")
def reference(images):
    return epochs(training_loader(images, 0))


@pytest.mark.parametrize(("workers", "cache"), [(0, "ram"), (1, None), (1, "ram"), (4, None), (4, "disk")])
def test_batches_do_not_depend_on_workers_or_cache(images, reference, workers, cache):
    assert same(epochs(training_loader(images, workers, cache=cache)), reference)


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_workers_start_either_way_with_one_shared_cache(images, reference, start_method):
    if start_method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start_method}")
    with started_by(start_method):
        assert same(epochs(training_loader(images, 1, cache="ram")), reference)


def test_seeds_and_epochs_change_the_batches_and_a_resumed_epoch_does_not(images, reference):
    assert not torch.equal(reference[0][0], reference[3][0])
    assert not same(epochs(training_loader(images, 0, seed=6)), reference)
    assert same(epochs(training_loader(images, 0), numbers=[1]), reference[3:])


def test_global_random_states_are_left_alone(images):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 the state that must not move
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    epochs(training_loader(images, 0))
    epochs(training_loader(images, 1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_training_batch_is_what_the_contract_says(reference):
    images, targets, paths, shapes = reference[0]
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 64, 64)
    assert images.is_contiguous()
    assert targets.dtype == torch.float32
    assert targets.shape[1] == 6
    assert len(targets) > 4
    assert ((targets[:, 2:] >= 0) & (targets[:, 2:] <= 1)).all()
    assert (targets[:, 0].diff() >= 0).all()
    assert set(targets[:, 0].int().tolist()) <= set(range(4))
    assert len(paths) == len(shapes) == 4
    assert reference[2][0].shape[0] == 2  # the last, partial batch


def test_a_single_class_reaches_the_batches(tmp_path):
    write_images(tmp_path / "images", SIZES)
    (tmp_path / "labels").mkdir()
    for i in range(len(SIZES)):
        (tmp_path / "labels" / f"{i:03d}.txt").write_text(f"{i % 3} .5 .5 .4 .4\n")
    (tmp_path / "d.yaml").write_text("train: images\nnames: [a, b, c]\n")
    classes = {}
    for single_cls in (True, False):
        images = load_images(load_dataset(tmp_path / "d.yaml", single_cls=single_cls), "train", workers=1)
        loader = build_loader(images, BatchOptions(64, 4, hyp={}), workers=0)
        classes[single_cls] = {c for _, targets, *_ in loader for c in targets[:, 1].tolist()}
    assert classes == {True: {0.0}, False: {0.0, 1.0, 2.0}}


def test_weights_reach_running_workers_and_the_tiles_of_mosaics(tmp_path):
    images = write_images(tmp_path, [(64, 64)] * 8)  # images 0 and 4 are empty, 3 and 7 have three boxes
    loader = Loader(
        DetectionDataset(images, BatchOptions(64, 4, hyp={"mosaic": 1.0})),
        BatchSampler(8, 4, shuffle=True),
        workers=1,
    )
    assert sum(len(batch[1]) for batch in loader) > 0
    weights = np.zeros(8)
    weights[[0, 4]] = 1
    loader.set_image_weights(weights)
    weighted = list(loader)
    assert {os.path.basename(p) for batch in weighted for p in batch[2]} == {"000.jpg", "004.jpg"}
    assert sum(len(batch[1]) for batch in weighted) == 0
    loader.set_image_weights(None)
    assert sum(len(batch[1]) for batch in loader) > 0
    loader.close()


def test_weights_and_rectangles_exclude_each_other(images):
    loader = build_loader(images, BatchOptions(64, 4, rect=True), workers=0)
    with pytest.raises(UserError, match="--rect"):
        loader.set_image_weights(np.ones(len(images)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_an_image_lost_after_its_verification_is_a_sentence(tmp_path, workers, damage):
    images = write_images(tmp_path, SIZES)
    if damage == "delete":
        os.unlink(images.path(6))
    else:
        os.truncate(images.path(6), 400)
    loader = build_loader(images, BatchOptions(64, 2), workers=workers)
    with pytest.raises(UserError, match=r"006\.jpg: ") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    loader.close()


def test_a_killed_worker_is_a_sentence(images):
    loader = training_loader(images, 1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    with pytest.raises(UserError, match="loader worker was ended by the system"):
        for _ in range(10):
            next(batches)


def test_workers_persist_over_epochs_and_end_with_close(images):
    loader = training_loader(images, 2)
    list(loader)
    first = {child.pid for child in multiprocessing.active_children()}
    for _ in loader:
        break  # an epoch left in the middle does not disturb the next
    loader.set_epoch(1)
    assert len(list(loader)) == 3
    assert {child.pid for child in multiprocessing.active_children()} == first
    assert len(first) == 2
    loader.close()
    assert multiprocessing.active_children() == []
    assert len(list(loader)) == 3
    loader.close()


def test_an_epoch_left_in_the_middle_does_not_change_the_next(images, reference):
    loader = training_loader(images, 2)
    for _ in loader:
        break
    assert same(epochs(loader), reference)


def test_workers_run_on_one_thread_and_leave_ctrl_c_to_the_main_process(images, monkeypatch):
    import signal

    import cv2

    def threads(self, keys):
        quiet = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return _Made((torch.get_num_threads(), cv2.getNumThreads(), quiet))

    monkeypatch.setattr("utils.dataset.loader._Batches.__getitems__", threads)
    loader = training_loader(images, 1)
    with started_by("fork"):
        assert set(loader) == {(1, 1, True)}
    loader.close()


def test_pinning_for_a_gpu_keeps_the_batch_as_it_is(reference, monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self.clone())
    pinned = pin_memory(_Made(reference[0])).batch
    assert isinstance(pinned, tuple)
    assert pinned[0] is not reference[0][0]
    assert same([pinned], reference[:1])


@pytest.mark.parametrize(
    ("device", "cpus", "workers"), [("cpu", 1, 0), ("cpu", 2, 0), ("cpu", 4, 8), ("cuda", 2, 8)]
)
def test_workers_unless_the_network_needs_every_core(monkeypatch, device, cpus, workers):
    monkeypatch.setattr("utils.device.available_cpus", lambda: cpus)
    assert workers_beside(torch.device(device), None) == workers
    assert workers_beside(torch.device(device), 3) == 3


def test_how_many_workers_are_worth_starting(monkeypatch):
    monkeypatch.setattr("utils.dataset.loader.available_cpus", lambda: 6)
    megabyte = 2**20
    assert count_workers(8, 100, megabyte) == 6
    assert count_workers(8, 100, megabyte, world_size=2) == 3
    assert count_workers(4, 100, megabyte) == 4
    assert count_workers(8, 2, megabyte) == 2
    assert count_workers(0, 100, megabyte) == 0
    assert prefetch(1) == 4
    assert prefetch(8) == 2


def test_a_small_shared_memory_costs_workers_and_not_the_run(monkeypatch, caplog):
    from collections import namedtuple

    usage = namedtuple("usage", "free")
    monkeypatch.setattr("utils.dataset.loader.available_cpus", lambda: 8)
    monkeypatch.setattr("utils.dataset.loader.shutil.disk_usage", lambda _: usage(64 * 2**20))
    monkeypatch.setattr("utils.dataset.loader.Path.is_dir", lambda _: True)
    assert count_workers(8, 100, 8 * 2**20) == 3
    assert count_workers(8, 100, 20 * 2**20) == 0
    assert count_workers(2, 100, 2**20) == 2
    assert caplog.text.count("workers instead of") == 2


def test_what_cannot_be_loaded_is_refused(images):
    with pytest.raises(UserError, match="no usable image"):
        build_loader(ImageSet(Packed.from_records([], []), ScanReport()), BatchOptions(64, 4))
    with pytest.raises(UserError, match="--seed -1"):
        build_loader(images, BatchOptions(64, 4, seed=-1))
    with pytest.raises(ValueError, match="exclude each other"):
        BatchOptions(64, 4, rect=True, frame=(64, 96))


@pytest.mark.parametrize(
    ("side", "imgsz", "told"), [(0.012, 64, True), (0.012, 320, False), (0.2, 64, False)]
)
def test_many_boxes_too_small_to_be_learnt_are_said_before_training(tmp_path, caplog, side, imgsz, told):
    root = make_dataset(tmp_path / "d", [f"0 .5 .5 {side} .2\n0 .4 .4 .2 {side}\n1 .5 .5 .3 .3\n"] * 3)
    images = load_images(load_dataset(write_yaml(root)), "train", workers=1)
    for hyp in (HYP, None):
        build_loader(images, BatchOptions(imgsz, 2, hyp=hyp), workers=0)
    sentence = f"6 of 9 boxes (67 %) have a side under 2 pixels at --imgsz {imgsz}"
    assert caplog.text.count(sentence) == told
    assert ("cut the images into tiles" in caplog.text) == told


def test_a_lone_image_at_the_end_joins_the_batch_before(images):
    for rect in (False, True):
        batches = list(build_loader(images, BatchOptions(64, 3, hyp=HYP, rect=rect), workers=0))
        assert [len(batch[0]) for batch in batches] == [3, 3, 4]
        assert len({path for batch in batches for path in batch[2]}) == len(images) == 10
    assert len(build_loader(images, BatchOptions(64, 3), workers=0)) == 4
