"""One module for each exported format: what writes it and what runs it.

Importing this package registers them all (`register_exporter`, `register_format`). The packages a format
needs are imported only when it is used.
"""

from models.formats import coreml, engine, executorch, ncnn, onnx, openvino, tflite, torchscript

__all__ = ["coreml", "engine", "executorch", "ncnn", "onnx", "openvino", "tflite", "torchscript"]
