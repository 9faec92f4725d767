"""Data sets: the YAML, finding and verifying images and labels, augmenting and batching them."""
