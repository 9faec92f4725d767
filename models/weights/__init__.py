"""Weights: checkpoints, official files, ImageNet backbones, and what a training starts from."""
