"""A frame and its letterbox: rates that make sense, one shape for a batch."""

import numpy as np

from utils.sources.frame import FALLBACK_FPS, Frame, Letterboxer, as_it_is, usable_rate


def test_a_rate_that_is_none_becomes_the_usual_one():
    assert [usable_rate(fps) for fps in (29.97, 0, -1, 90000, float("nan"))] == [29.97, *[FALLBACK_FPS] * 4]


def test_a_name_is_that_of_the_path_and_live_frames_have_a_time():
    frame = Frame("a/b.jpg", np.zeros((4, 4, 3), np.uint8))
    assert (frame.name, frame.is_live) == ("b.jpg", False)
    assert Frame("rtsp://x/1", frame.image, time=3.5).is_live


def test_frames_of_one_shape_keep_their_rectangle_and_others_share_a_square():
    wide, tall = (np.full((*size, 3), (10, 20, 30), np.uint8) for size in ((30, 60), (60, 30)))
    fit = Letterboxer((64, 64), 32, auto=True)
    (alone,) = fit([Frame("a", wide)])
    assert alone.input.shape == (3, 32, 64) and alone.input[:, 16, 32].tolist() == [30, 20, 10], "RGB"
    batch = fit([Frame("a", wide), Frame("b", tall)])
    assert [frame.input.shape for frame in batch] == [(3, 64, 64), (3, 64, 64)]
    assert all(frame.seconds > 0 for frame in batch)


def test_a_frame_for_tiles_is_the_image_itself():
    frame = Frame("a", np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    (given,) = as_it_is([frame])
    assert given.input.shape == (3, 2, 4) and given.input[:, 0, 1].tolist() == [5, 4, 3], "RGB"
    assert np.shares_memory(given.input, frame.image)
