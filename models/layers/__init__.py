"""Hold the layers below the blocks: activations, depthwise convolution, networks of other libraries."""
