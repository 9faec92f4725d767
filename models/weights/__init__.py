"""Read and write weights: checkpoints, official files, ImageNet backbones."""
