"""What detect.py reads: files, videos, streams, cameras, screens, standard input."""
