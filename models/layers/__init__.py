"""Layers below the blocks: activations, the depthwise convolution, networks of timm and torchvision."""
