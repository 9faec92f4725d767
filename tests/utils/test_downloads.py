"""Downloads against a server in a thread, and archives that should not be trusted."""

import contextlib
import errno
import hashlib
import http.server
import io
import stat
import tarfile
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.file_server import serve
from utils.dataset.config import load_dataset
from utils.dataset.images import load_images
from utils.downloads import MOST_EXPANSION, fetch, file_name, is_archive, unpack
from utils.errors import UserError

BODY = bytes(range(256)) * 1500


@pytest.fixture
def server():
    with serve(BODY) as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
    dest = tmp_path / "new" / "a.bin"
    digests = [f"{name}:{hashlib.new(name, BODY).hexdigest()}" for name in ("sha256", "md5")]
    fetch(f"{server.url}/a.bin", dest, len(BODY), digests[0])
    assert dest.read_bytes() == BODY
    assert [p.name for p in dest.parent.iterdir()] == ["a.bin"]
    fetch(f"{server.url}/a.bin", dest, len(BODY), digests[0])
    assert len(server.asked) == 1
    fetch(f"{server.url}/a.bin", dest.with_name("b.bin"), len(BODY), digests[1])
    assert dest.with_name("b.bin").read_bytes() == BODY


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.break_after = 100_000
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_later_run_goes_on_with_the_part_that_an_earlier_one_left(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:1234])
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert server.asked == ["bytes=1234-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_whole_part_is_recognised(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_part_longer_than_the_file_starts_over(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", pause=0)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 5000)
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_no_progress_ends_in_a_sentence_and_keeps_the_part(server, tmp_path):
    server.ranges, server.break_after = False, 1000
    with pytest.raises(UserError, match="cannot be fetched .*1000 of 384000 bytes.*put the file at"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=2, pause=0)
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").stat().st_size == 1000


def test_truncation_that_the_server_does_not_own_up_to(server, tmp_path):
    server.tell_length, server.break_after = False, 5000
    with pytest.raises(UserError, match="5000 bytes came where 384000 are expected"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", len(BODY), pause=0)
    assert not list(tmp_path.iterdir())


def test_wrong_size_and_wrong_digest_leave_nothing(server, tmp_path):
    with pytest.raises(UserError, match="offers 384000 bytes where 7 are expected"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", 7)
    with pytest.raises(UserError, match="its sha256 is .* where 00 is expected"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", digest="sha256:00")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("code", "asked"), [(404, 1), (503, 2)])
def test_error_codes_are_sentences_and_only_passing_ones_are_tried_again(server, tmp_path, code, asked):
    with pytest.raises(UserError, match=str(code)):
        fetch(f"{server.url}/status/{code}", tmp_path / "a.bin", attempts=2, pause=0)
    assert len(server.asked) == asked


def test_no_server_and_other_schemes(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be fetched .* or put the file at .*a$"):
        fetch(f"{server.url}/a", tmp_path / "a", attempts=1, pause=0)
    with pytest.raises(UserError, match="or fetch it yourself and give its path$"):
        fetch(f"{server.url}/a", tmp_path / "a", attempts=1, pause=0, passing=True)
    with pytest.raises(UserError, match="only http"):
        fetch(tmp_path.as_uri(), tmp_path / "a")


def test_two_runs_that_want_the_same_file_fetch_it_once(server, tmp_path):
    server.pause = 0.4

    def run(delay):
        time.sleep(delay)
        return fetch(f"{server.url}/a.bin", tmp_path / "a.bin", len(BODY)).read_bytes()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 0.2))) == [BODY, BODY]
    assert server.asked == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_file_names_of_urls_stay_in_the_folder():
    assert file_name("https://x.org/a/b.zip?token=1#f") == "b.zip"
    assert file_name("https://x.org/a/..%2f..%2fetc%2fpasswd") == "passwd"
    assert file_name("https://x.org/") == "download"
    assert file_name("https://x.org/..") == "download"
    assert is_archive("A.TAR.GZ")
    assert not is_archive("a.yaml")


def test_a_full_disk_is_not_tried_again(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.downloads._copy", full)
    with pytest.raises(UserError, match="a.bin: cannot be written .No space left on device"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", pause=0)
    assert len(server.asked) == 1


# archives


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_unpack_and_merge(tmp_path, kind):
    names = {"d/images/a.txt": b"1" * 1000, "d/b.txt": b"2"}
    archive = tmp_path / f"x.{kind}"
    if kind == "zip":
        _zip(archive, names)
    else:
        _tar(
            archive, [(tarfile.TarInfo(n), d) for n, d in names.items()], "w:gz" if kind == "tar.gz" else "w"
        )
    (tmp_path / "out" / "d").mkdir(parents=True)
    (tmp_path / "out" / "d" / "mine.txt").write_text("stays")
    unpack(archive, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.txt")}
    assert found == names | {"d/mine.txt": b"stays"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["d"]


@pytest.mark.parametrize("mine", ["d/b.txt", "d/b.txt/c", "d"])
def test_unpacking_replaces_a_file_only_when_told_to(tmp_path, mine):
    archive = _zip(tmp_path / "x.zip", {"a.txt": "1", "d/b.txt": "2"})
    place = tmp_path / "out" / mine
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(UserError, match=r"out/d.*: exists already and differs from the one in .*x\.zip"):
        unpack(archive, tmp_path / "out")
    assert _tree(tmp_path / "out") == {mine: b"mine"}
    if mine == "d/b.txt":
        unpack(archive, tmp_path / "out", replace=True)
        assert _tree(tmp_path / "out") == {"a.txt": b"1", "d/b.txt": b"2"}


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\evil", "..\\evil", "\\evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_member_leaves_the_folder(tmp_path, name, kind):
    archive = tmp_path / f"x.{kind}"
    if kind == "zip":
        _zip(archive, {"good.txt": b"1", name: b"2"})
    else:
        _tar(archive, [(tarfile.TarInfo("good.txt"), b"1"), (tarfile.TarInfo(name), b"2")])
    with pytest.raises(UserError, match="would leave the folder"):
        unpack(archive, tmp_path / "in" / "out")
    assert not list((tmp_path / "in").rglob("*.txt"))
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("x")
    member.type, member.linkname = kind, "/etc/passwd"
    _tar(tmp_path / "x.tar", [(tarfile.TarInfo("good"), b"1"), (member, b"")])
    with pytest.raises(UserError, match="link or a device"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(UserError, match="link or a device"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("fault", ["cut", "flipped", "other"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_broken_archives_leave_nothing(tmp_path, fault, kind):
    archive, data = tmp_path / f"x.{kind}", hashlib.sha512(b"x").digest() * 500
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("a", data)
    else:
        _tar(archive, [(tarfile.TarInfo("a"), data)], "w:gz")
    whole = bytearray(archive.read_bytes())
    if fault == "cut":
        whole = whole[: len(whole) // 2]
    elif fault == "flipped":
        whole[len(whole) // 2] ^= 255
    else:
        whole = b"<html>404</html>"
    archive.write_bytes(whole)
    with pytest.raises(UserError, match=f"x.{kind}"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_member_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    archive = _zip(tmp_path / "x.zip", {"a": b"1" * 5_000_000})
    monkeypatch.setattr("utils.downloads.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(UserError, match="needs 4 MiB .* 0 are free"):
        unpack(archive, tmp_path / "out")


# a data set from the network


@pytest.fixture
def remote(server, tmp_path, monkeypatch):
    """A dataset YAML whose images are a zip on the server."""
    import cv2
    import numpy as np

    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "fetched"))
    monkeypatch.chdir(tmp_path)
    png = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    _zip(tmp_path / "r.zip", {"tiny/images/t/a.png": png, "tiny/labels/t/a.txt": "0 .5 .5 .5 .5\n"})
    server.body = (tmp_path / "r.zip").read_bytes()
    path = tmp_path / "conf" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(
        "path: ../datasets/tiny\ntrain: images/t\nval: images/t\nnames: [a]\n"
        f"download: {server.url}/tiny.zip\n"
    )
    return path


def test_a_missing_data_set_is_fetched_once(server, remote, tmp_path):
    for _ in range(2):
        config = load_dataset(remote)
        assert config.root == tmp_path / "fetched" / "tiny"
    assert len(load_images(config, "train").all_labels) == 1
    assert len(server.asked) == 1
    assert sorted(p.name for p in (tmp_path / "fetched").iterdir()) == ["tiny"]


def test_without_the_server_the_sentence_says_what_to_put_where(server, remote, tmp_path):
    server.body = b""
    remote.write_text(remote.read_text().replace("tiny.zip", "status/404"))
    with pytest.raises(
        UserError, match=f"404.*unpack it by hand, so that {tmp_path / 'fetched' / 'tiny'} exists"
    ):
        load_dataset(remote)


def _pets(server, tmp_path, path, members, address="pets.zip"):
    """A YAML `pets.yaml` with this `path`, its archive on the server."""
    server.body = _zip(tmp_path / "served.zip", members).read_bytes()
    text = "" if path is None else f"path: {path}\n"
    yaml = tmp_path / "conf" / "pets.yaml"
    yaml.write_text(f"{text}train: i\nval: i\nnames: [a]\ndownload: {server.url}/{address}\n")
    return yaml


def _tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("path", ["~/pets", "~", "{tmp}/home/pets", None, ".", "../datasets"])
def test_a_strangers_yaml_writes_nowhere_but_below_the_datasets_folder(
    server, remote, tmp_path, monkeypatch, path
):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("mine")
    (tmp_path / "fetched").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    members = {".bashrc": "theirs", "light-yolo/train.py": "theirs", "pets/i/a.txt": ""}
    yaml = _pets(server, tmp_path, path and path.format(tmp=tmp_path), members)
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=f"no folder of its own below {tmp_path / 'fetched'}"):
        load_dataset(yaml)
    assert _tree(tmp_path) == before
    assert server.asked == []


def test_dots_do_not_lead_out_of_the_datasets_folder(server, remote, tmp_path):
    yaml = _pets(server, tmp_path, "../datasets/../../home/pets", {"pets/i/a.txt": ""})
    assert load_dataset(yaml).root == tmp_path / "fetched" / "home" / "pets"
    assert not (tmp_path.parent / "home").exists()


def test_what_lies_beside_the_data_sets_folder_in_an_archive_is_left_out(server, remote, tmp_path):
    members = {".bashrc": "theirs", "light-yolo/train.py": "theirs", "pets/i/a.txt": "1"}
    (tmp_path / "fetched" / "pets.part").mkdir(parents=True)  # where the archive gathers; not emptied of more
    (tmp_path / "fetched" / "pets.part" / "mine.txt").write_text("mine")
    config = load_dataset(_pets(server, tmp_path, "../datasets/pets", members))
    assert config.root == tmp_path / "fetched" / "pets"
    assert _tree(tmp_path / "fetched") == {"pets/i/a.txt": b"1", "pets.part/mine.txt": b"mine"}


def test_an_archive_without_that_folder_goes_into_it_whole(server, remote, tmp_path):
    config = load_dataset(_pets(server, tmp_path, "pets", {"i/a.txt": "1", "data.yaml": ""}))
    assert config.root == tmp_path / "fetched" / "pets"
    assert _tree(tmp_path / "fetched") == {"pets/i/a.txt": b"1", "pets/data.yaml": b""}


def test_fetching_never_replaces_a_file(server, remote, tmp_path):
    home = tmp_path / "fetched" / "pets"
    (home / "labels").mkdir(parents=True)
    (home / "labels" / "a.txt").write_text("mended by hand")
    members = {"pets/i/a.txt": "1", "pets/labels/a.txt": "theirs", "pets/labels/b.txt": "2"}
    yaml = _pets(server, tmp_path, "../datasets/pets", members)
    with pytest.raises(UserError, match="pets/labels/a.txt: exists already.*nothing was changed"):
        load_dataset(yaml)
    assert _tree(home) == {"labels/a.txt": b"mended by hand"}
    (home / "labels" / "a.txt").write_text("theirs")  # the same bytes are in nobody's way
    assert load_dataset(yaml).root == home
    assert _tree(tmp_path / "fetched") == {name: data.encode() for name, data in members.items()}
    assert len(server.asked) == 1  # the archive stayed for the second run


def test_two_runs_that_want_the_same_data_set_fetch_it_once(server, remote, tmp_path):
    server.pause = 0.4

    def run(delay):
        time.sleep(delay)
        return load_dataset(remote).root

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (0, 0.2))) == [tmp_path / "fetched" / "tiny"] * 2
    assert server.asked == [None]
    assert [p.name for p in (tmp_path / "fetched").iterdir()] == ["tiny"]


def test_several_archives_of_one_name_complete_each_other(server, remote, tmp_path):
    yaml = _pets(server, tmp_path, "../datasets/pets", {"pets/i/a.txt": "1"})
    first = server.body
    _pets(server, tmp_path, "../datasets/pets", {"pets/labels/a.txt": "2"})
    server.bodies = {"/x/data.zip": first, "/y/data.zip": server.body}
    yaml.write_text(
        "path: ../datasets/pets\ntrain: i\nval: i\nnames: [a]\n"
        f"download: [{server.url}/x/data.zip, {server.url}/y/data.zip]\n"
    )
    load_dataset(yaml)
    assert _tree(tmp_path / "fetched") == {"pets/i/a.txt": b"1", "pets/labels/a.txt": b"2"}


def test_an_address_with_letters_beyond_ascii_is_fetched(server, tmp_path):
    server.bodies["/downloads%C3%A9/my%20set.bin"] = b"found"
    fetch(f"{server.url}/downloads\u00e9/my%20set.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"found"


def test_an_archive_of_zeros_is_refused_before_it_fills_the_disk(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.bin", bytes(80 << 20))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("a.bin")
        info.size = 80 << 20
        file.addfile(info, io.BytesIO(bytes(info.size)))
    for path in (archive, tmp_path / "a.tar.gz"):
        with pytest.raises(UserError, match=f"more than {MOST_EXPANSION} times larger"):
            unpack(path, tmp_path / "out")
        assert not any((tmp_path / "out").iterdir())


def test_a_long_header_of_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("x" * (2 << 20)))
    with pytest.raises(UserError, match="broken archive .*a header of 2097166 bytes"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_damaged_directory_of_a_zip_is_a_sentence(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "a")
    good = archive.read_bytes()
    for at in range(good.index(b"PK\x01\x02"), len(good)):
        archive.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        with contextlib.suppress(UserError):  # some bytes do not matter
            unpack(archive, tmp_path / "out", replace=True)


def test_redirects_stay_on_http(tmp_path):
    class Away(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1:1/a.zip")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Away)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="sends to 'ftp://127.0.0.1:1/a.zip', which is no http address"):
            fetch(f"http://127.0.0.1:{server.server_port}/a.zip", tmp_path / "a.zip")
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/a",
        "http://h:99999999/a",
        "http://h:x/a",
        "http:///a",
        "http://a b/c",
        f"http://{'a' * 300}/x",
    ],
)
def test_an_address_that_is_none_is_refused_without_a_try(url, tmp_path):
    with pytest.raises(UserError, match="is not a valid address"):
        fetch(url, tmp_path / "a.zip", attempts=1000)


@pytest.mark.parametrize("names", [("a/1.txt", "a/1.txt"), ("a", "a/1.txt"), ("a/1.txt", "a\\1.txt")])
def test_a_member_that_is_there_twice_has_its_own_sentence(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a double name
        for text, name in enumerate(names):
            archive.writestr(name, str(text))
    with pytest.raises(UserError, match="is in it twice.*unpack it by hand and give the folder"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_each_wait_is_said(server, tmp_path, log):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(f"{server.url}/a", tmp_path / "a", attempts=3, pause=0.001)
    told = [line.partition("trying again ")[2] for line in log.text.splitlines()]
    assert list(dict.fromkeys(told)) == ["in 0.001 s (2 of 3)", "in 0.002 s (3 of 3)"]
