"""What detect.py and the hub give back: boxes, drawings, files, videos."""
