"""Name the project, and the versions of what its files say of themselves."""

from __future__ import annotations

PROJECT = "light-yolo"

SCHEMA = 2  # the latest that is read; raised when a reader of today could misread a file of tomorrow

SCHEMA_DECODED = 1  # what files without NMS inside say: every reader understands them

TASK = "detect"
