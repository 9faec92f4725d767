"""Offer the sources under the name that YOLOv5 6.1 and older had for `utils.dataloaders`."""

from .dataloaders import IMG_FORMATS, VID_FORMATS, LoadImages, LoadScreenshots, LoadStreams, letterbox

__all__ = ["IMG_FORMATS", "VID_FORMATS", "LoadImages", "LoadScreenshots", "LoadStreams", "letterbox"]
