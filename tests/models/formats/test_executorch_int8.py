"""The ranges that an int8 program for XNNPACK has."""

import pytest
import torch

pytest.importorskip("executorch.runtime", reason="executorch is optional and large")
pytest.importorskip("torchao", reason="torchao comes with executorch")

from models.formats.executorch_int8 import quantise_program  # noqa: E402 imports both packages


class Maps(torch.nn.Module):
    """Convolutions of large results before ReLU6 and SiLU, a joining of small and large maps, a head."""

    def __init__(self, relu6):
        super().__init__()
        self.relu6 = relu6
        generator = torch.Generator().manual_seed(0)
        for name, channels in (("clipped", 3), ("curved", 4), ("large", 4), ("head", 8)):
            conv = torch.nn.Conv2d(channels, 4, 1)
            conv.weight.data = 20 * torch.randn(conv.weight.shape, generator=generator)
            self.add_module(name, conv)

    def forward(self, x):
        x = self.relu6(self.clipped(x))
        x = torch.nn.functional.silu(self.curved(x))
        return self.head(torch.cat((x, self.large(x)), 1))


@pytest.mark.parametrize("relu6", [torch.nn.ReLU6(inplace=True), torch.nn.functional.relu6])
def test_ranges_end_where_activations_do_and_hold_all_that_is_joined(relu6):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand(1, 3, 8, 8, generator=generator) - 0.5 for _ in range(4)]
    program = quantise_program(Maps(relu6).eval(), batches[0], batches)
    ranges = {}
    for node in program.graph.nodes:
        if node.target == torch.ops.quantized_decomposed.quantize_per_tensor.default:
            scale, zero = node.args[1:3]
            ranges[node.args[0].name] = (scale * (-128 - zero), scale * (127 - zero))
    clipped, curved = (
        ranges[next(name for name in ranges if "tanh" in name or "relu6" in name)],
        ranges["conv2d_1"],
    )
    assert clipped == pytest.approx((0, 6), abs=0.02)
    assert "conv2d" not in ranges, "nothing is between a convolution and its ReLU6"
    assert curved[0] == pytest.approx(-6, abs=0.5) and curved[1] > 20
    assert ranges["silu"] == ranges["conv2d_2"] == ranges["cat"], "what is joined has one range"
    assert ranges["cat"][0] < -100 and ranges["cat"][1] > 100
    assert len(ranges) == 6, "the image and five maps, not what the head makes"
