"""Offer the modules of YOLOv5 that scripts import.

Each is a few lines over this project's functions.

`models` and `utils` look for modules in `compat/models` and `compat/utils` after their own. A script that was
written inside a YOLOv5 checkout then finds `utils.general` or `models.experimental` here too. Names,
signatures, defaults and results are YOLOv5's; everything else in the project uses the functions themselves.
"""
