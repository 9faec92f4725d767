"""Hold the versions of what a checkpoint or an exported file says of itself."""

from __future__ import annotations

SCHEMA = 2  # the latest that is read; raised when a reader of today could misread a file of tomorrow

SCHEMA_DECODED = 1  # what files without NMS inside say: every reader understands them

TASK = "detect"
