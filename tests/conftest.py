"""What holds for every test: side by side (pytest -n), each process computes with one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, here and in what tests start, reads it on import
