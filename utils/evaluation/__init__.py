"""Evaluation: the loop over a labelled set, mAP, COCO's own figures, curves and plots."""
