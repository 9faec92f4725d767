"""Pascal VOC and COCO annotations to YOLO labels."""
