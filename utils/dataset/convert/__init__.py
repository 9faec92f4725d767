"""Data sets of other tools to images, YOLO labels and a dataset YAML."""
