"""Evaluate a detector: the loop over a labelled set, mAP, COCO's figures, plots."""
