"""Training: options, the epoch loop, loss, optimizer, anchors, and the folder of a run."""
