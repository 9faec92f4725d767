"""Files: names that are not taken twice, whole writes, YAML errors that teach, finding what was named."""

import errno
import os
import resource
from pathlib import Path

import pytest

from utils import files
from utils.errors import UserError
from utils.files import MOST_NODES, expand_user, load_yaml, read_regular


def test_increment_dir_takes_the_first_free_number(tmp_path):
    names = [files.increment_dir(tmp_path, "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    (tmp_path / "exp2").rmdir()
    assert files.increment_dir(tmp_path, "exp").name == "exp2"
    assert files.increment_dir(tmp_path, "exp", exist_ok=True).name == "exp"


def test_atomic_write_leaves_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "best.pt"
    target.write_bytes(b"old")

    def half(file):
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.atomic_write(target, half)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_atomic_write_survives_a_real_file_size_limit(tmp_path):
    """RLIMIT_FSIZE stands for the full disk: the kernel refuses the write, the old file stays whole."""
    target = tmp_path / "last.pt"
    target.write_bytes(b"old")
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.atomic_write(target, lambda file: file.write(b"x" * 100_000))
        except OSError as error:
            os._exit(3 if error.errno == errno.EFBIG else 4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    for name in ("x" * 251 + ".txt", "日" * 83 + ".txt"):
        files.atomic_text(tmp_path / name, "text")
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_atomic_write_leaves_the_umask_of_other_threads_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "umask", lambda mask: asked.append(mask) or 0)
    files.atomic_text(tmp_path / "a.txt", "text")
    assert asked == [] and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_write_honours_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        files.atomic_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: a\n\tval: b\n", r"line 2: a tab"),
        ("names: [a, b\n", r"line \d: is not valid YAML"),
        ("- a\n- b\n", "holds a list"),
        ("", "holds nothing"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_load_yaml_teaches(tmp_path, text, expected):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        files.load_yaml(path)
    assert str(path) in str(caught.value)


def test_load_yaml_missing_and_binary(tmp_path):
    with pytest.raises(UserError, match="no such YAML file"):
        files.load_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        files.load_yaml(tmp_path / "b.yaml")


@pytest.mark.parametrize("text", ["a: " + "[" * 3000, "a: " + "[" * 3000 + "]" * 3000, "{a: " * 3000])
def test_load_yaml_of_too_many_brackets(tmp_path, text):
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(UserError, match=r"deep\.yaml: lists or mappings are nested too deeply"):
        files.load_yaml(tmp_path / "deep.yaml")


def test_yaml_round_trip_keeps_order(tmp_path):
    data = {"z": 1, "a": {"name": "Größe"}, "m": [1.5, None]}
    files.save_yaml(tmp_path / "x.yaml", data)
    again = files.load_yaml(tmp_path / "x.yaml")
    assert again == data
    assert list(again) == ["z", "a", "m"]


def test_find_file_searches_bare_names_and_refuses_doubles(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/coco.yaml").write_text("a: 1")
    assert files.find_file("coco.yaml", "data") == tmp_path / "data/sub/coco.yaml"
    assert files.find_file("data/sub/coco.yaml") == tmp_path / "data/sub/coco.yaml"
    (tmp_path / "data/coco.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="several files"):
        files.find_file("coco.yaml", "data")
    with pytest.raises(UserError, match="looked for"):
        files.find_file("none.yaml", "data")


def test_finished_path_takes_the_place_of_a_file_or_a_folder(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.bin").write_bytes(b"12345")
    assert files.path_size(tmp_path / "old") == files.path_size(tmp_path / "old" / "old.bin") == 5
    files.replace_path(tmp_path / "new", tmp_path / "old")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["old", "old/new.bin"]
    files.replace_path(tmp_path / "old" / "new.bin", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"12345"
    with pytest.raises(OSError):
        files.replace_path(tmp_path / "nothing", tmp_path / "old")
    assert (tmp_path / "old").is_dir(), "what was there stays when nothing takes its place"


def test_paths_of_a_list_are_looked_for_in_one_order(tmp_path, monkeypatch):
    """Beside the list, below the data set's root, in the working folder; `./` is beside the list only."""
    for name in ("lists/a", "root/a", "work/a", "root/b", "work/b", "work/c", "work/d", "lists/sub/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "lists" / "x.txt").write_text("\ufeffa\n\nb\r\n c \n./d\nsub\\e\nnone\n", encoding="utf-8")
    lines = files.read_path_list(tmp_path / "lists" / "x.txt", tmp_path / "root")
    assert [(number, name) for number, name, _ in lines] == [
        (1, "a"),
        (3, "b"),
        (4, "c"),
        (5, "./d"),
        (6, "sub\\e"),
        (7, "none"),
    ]
    found = [os.path.relpath(path, tmp_path) for _, _, path in lines]
    assert found == ["lists/a", "root/b", "work/c", "lists/d", "lists/sub/e", "lists/none"]
    without_root = files.read_path_list(tmp_path / "lists" / "x.txt")
    assert os.path.relpath(without_root[1][2], tmp_path) == "work/b"


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("a.png\n", encoding="utf-16")
    with pytest.raises(UserError, match="not UTF-8 text"):
        files.read_path_list(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"none\.txt: the list cannot be read"):
        files.read_path_list(tmp_path / "none.txt")


def test_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert files.user_cache_dir() == tmp_path / ".cache"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert files.user_cache_dir() == tmp_path / "local"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.user_cache_dir() == tmp_path / "xdg"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n2020-02-30: x\n", 2),
        ("!!bool x: 1\n", 1),
        ("a:\n  - !!timestamp y\n", 2),
        ("a: !!int ''\n", 1),
        (f"a: {'9' * 5000}\n", 1),
    ],
)
def test_a_value_that_is_not_what_its_form_says_is_named(tmp_path, text, line):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(
        UserError, match=rf"d\.yaml, line {line}: is not valid YAML \(no (timestamp|bool|int)"
    ):
        files.load_yaml(tmp_path / "d.yaml")


@pytest.mark.parametrize("end", ["names: *a30", "a31: &a31 [*a31]"])
def test_aliases_without_end_are_refused_at_once(tmp_path, end):
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 31)), end]
    (tmp_path / "d.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases repeat parts without end"):
        files.load_yaml(tmp_path / "d.yaml")
    (tmp_path / "d.yaml").write_text("\n".join(lines[:10]))
    assert len(files.load_yaml(tmp_path / "d.yaml")) == 10


def test_a_cache_of_what_cannot_be_written_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir(mode=0o555)
    assert files.own_or_user_folder(tmp_path / "open", "x") == tmp_path / "open"
    others = {files.own_or_user_folder(tmp_path / name, "x").parent for name in ("closed", "missing")}
    assert others == {tmp_path / "cache" / "x"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read_regular(path)
        with pytest.raises(UserError, match="no regular file"):
            load_yaml(path)
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(UserError, match=r"a\.yaml: cannot be read"):
        load_yaml(tmp_path / "a.yaml")


def test_an_unknown_user_is_a_name_of_a_folder():
    assert expand_user("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert expand_user("~/x") == Path.home() / "x"


def test_a_yaml_of_more_values_than_any_needs_is_refused(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text("a:\n" + "- x\n" * MOST_NODES)
    with pytest.raises(UserError, match=f"more than {MOST_NODES} values"):
        load_yaml(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nc: 2\nnames: [a]\nnc: 3\n", "line 3: .*the key 'nc' is in line 1 already"),
        ("names:\n  0: a\n  1: b\n  0: c\n", "line 4: .*the key '0' is in line 2 already"),
        ("a: [{b: 1, 'b': 2}]\n", "line 1: .*the key 'b' is in line 1 already"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, text, sentence):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    for names_as_text in (False, True):
        with pytest.raises(UserError, match=sentence):
            load_yaml(path, names_as_text=names_as_text)


def test_a_merged_key_may_be_replaced(tmp_path):
    (tmp_path / "d.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert load_yaml(tmp_path / "d.yaml")["b"] == {"x": 1, "y": 3}


@pytest.mark.skipif(os.sep != "/", reason="elsewhere they are paths")
def test_a_path_of_windows_is_named_as_one():
    with pytest.raises(UserError, match=r"path of Windows.*\(in WSL /mnt/c/sets/x.yaml\)$"):
        files.find_file("C:\\sets\\x.yaml", "data")
    with pytest.raises(UserError, match="path of Windows.*, with slashes$"):
        files.find_file("data\\nothing.yaml", "data")


def dead_part(folder, name):
    """What a killed process of this machine leaves of a file that it was writing."""
    pid = os.fork()
    if pid == 0:
        files.atomic_write(folder / name, lambda _: os._exit(0))
    os.waitpid(pid, 0)
    (part,) = folder.glob(f".{name[:40]}.*.part")
    return part


def test_parts_of_dead_processes_are_removed_and_no_others(tmp_path):
    dead = dead_part(tmp_path, "a.npz")
    others = dead.with_name(dead.name.replace(files._machine(), "0" * 8))
    others.touch()
    files.remove_dead_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [others.name]
