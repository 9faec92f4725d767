"""utils/results/result_files.py: names that never clash or escape, labels, crops."""

import cv2
import numpy as np

from utils.results.result_files import FreePaths, StemBook, crop_box, folder_names, label_lines, write_image


def test_stems_never_clash():
    book = StemBook()
    claims = [("x", False), ("x", False), ("X", False), ("x-2", False), ("clip_3", False), ("clip", True)]
    stems = [book.claim(*claim) for claim in claims]
    assert stems == ["x", "x-2", "X-3", "x-2-2", "clip_3", "clip-2"]
    assert book.claim("film", True) == "film"
    assert book.claim("film_7", False) == "film_7-2"  # the labels of frame 7 are called film_7.txt


def test_many_equal_stems_are_counted_on_and_not_from_the_start(monkeypatch):
    tries = []
    clashes = StemBook._clashes
    monkeypatch.setattr(StemBook, "_clashes", lambda *a: tries.append(a) or clashes(*a))
    book = StemBook()
    stems = [book.claim(("rgb", "RGB")[i % 2], i % 3 == 0) for i in range(3000)]
    assert len({stem.lower() for stem in stems}) == 3000 and "rgb-3000" in map(str.lower, stems)
    assert len(tries) <= 3 * 3000


def test_folder_names_stay_inside_and_apart():
    names = {0: "../x", 1: "a/b", 2: "..", 3: "person", 4: "Person", 5: "", 6: "кот", 7: "/etc/passwd"}
    folders = folder_names(names)
    assert len({f.lower() for f in folders.values()}) == len(names)
    for folder in folders.values():
        assert folder and "/" not in folder and "\\" not in folder and folder.strip(".") == folder
    assert (folders[2], folders[3], folders[6]) == ("class2", "person", "кот")


def test_crop_grows_by_two_percent_and_ten_pixels_and_is_cut_at_the_edge():
    image = np.zeros((200, 300, 3), np.uint8)
    assert crop_box(image, np.array([100, 50, 200, 150])).shape == (112, 112, 3)
    assert crop_box(image, np.array([0, 0, 100, 50])).shape == (56, 106, 3)


def test_label_lines_in_both_formats():
    det = np.array([[20, 10, 60, 30, 0.123456789, 2]], np.float32)
    assert label_lines(det, (50, 100)) == "2 0.4 0.4 0.4 0.4\n"
    assert label_lines(det, (50, 100), conf=True) == "2 0.4 0.4 0.4 0.4 0.123457\n"
    assert label_lines(det, (50, 100), corners=True) == "2 0.2 0.2 0.6 0.6\n"
    assert label_lines(np.empty((0, 6)), (50, 100)) == ""


def test_image_names_beyond_ascii(tmp_path):
    write_image(tmp_path / "кот.png", np.full((4, 5, 3), 9, np.uint8))
    data = np.frombuffer((tmp_path / "кот.png").read_bytes(), np.uint8)
    assert (cv2.imdecode(data, cv2.IMREAD_COLOR) == 9).all()


def test_free_paths_count_on_and_leave_existing_files_alone(tmp_path):
    (tmp_path / "a2.jpg").touch()
    paths = FreePaths()
    assert [paths.next(tmp_path / base).name for base in ("a", "a", "b.c")] == ["a.jpg", "a3.jpg", "b.c.jpg"]
