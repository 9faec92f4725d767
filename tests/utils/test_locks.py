"""Locks between threads and processes."""

import subprocess
import sys
import threading
import time

import pytest

from utils.errors import UserError
from utils.files import ROOT
from utils.locks import exclusive, is_held


def test_one_at_a_time_and_nothing_is_left(tmp_path):
    inside, most, turns = [], [], []

    def work():
        for _ in range(5):
            with exclusive(tmp_path / "deep" / "x.lock", "x", pause=0.001):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()
                turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 20
    assert max(most) == 1
    assert not list((tmp_path / "deep").iterdir())


def test_a_process_that_died_locks_nobody_out(tmp_path):
    code = (
        "import os, pathlib, sys; from utils.locks import exclusive\n"
        "lock = exclusive(pathlib.Path(sys.argv[1]), 'x'); lock.__enter__(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.lock")], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert (tmp_path / "x.lock").exists()
    with exclusive(tmp_path / "x.lock", "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"), exclusive(tmp_path / "file" / "x", "x"):
        pass


def test_a_lock_is_held_while_its_process_lives(tmp_path):
    path = tmp_path / "x.lock"
    with exclusive(path, "x"):
        assert is_held(path) and path.exists()
    assert not is_held(path) and not path.exists()
    code = (
        "import os, pathlib, sys; from utils.locks import exclusive\n"
        "lock = exclusive(pathlib.Path(sys.argv[1]), 'x'); lock.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == 9
    assert path.exists() and not is_held(path)
