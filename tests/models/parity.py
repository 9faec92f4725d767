"""What the families' parity tests share: references with weights worth comparing, outputs of every layer."""

import torch
from torch import nn

from models.yolo import DetectionModel

TOLERANCE = 1e-4  # of the largest value of the reference


def randomise_norms(module: nn.Module) -> nn.Module:
    """BatchNorm as after training; fresh ones hide a wrong eps and a wrong order. In place, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, low, high in (
                (m.running_mean, -0.5, 0.5),
                (m.running_var, 0.5, 2.0),
                (m.weight.data, 0.5, 1.5),
                (m.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module.eval()


@torch.no_grad()
def settle_norms(network: nn.Module, image: torch.Tensor) -> nn.Module:
    """Random scales and shifts, and statistics of this batch, as training leaves them. In place; eval mode.

    Statistics drawn at random let maps grow from layer to layer, until what a deep block adds is rounded away
    and no difference in it can show.
    """
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    for m in norms:
        m.weight.copy_(torch.rand(m.weight.shape, generator=generator) + 0.5)
        m.bias.copy_(torch.rand(m.bias.shape, generator=generator) - 0.5)
    batch_norms = [m for m in norms if isinstance(m, nn.BatchNorm2d)]
    kept = [m.momentum for m in batch_norms]
    for m in batch_norms:
        m.momentum = 1.0
        m.train()
    network(image)
    for m, momentum in zip(batch_norms, kept):
        m.momentum = momentum
    return network.eval()


def copy_in_order(source, target: nn.Module, skip=()) -> int:
    """Give a module another's tensors, one by one in their order; shapes must agree. Returns how many.

    Args:
        source: a module or a state_dict; it may be longer.
        skip: name parts of tensors of the source that have no counterpart.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    given = [(name, t) for name, t in state.items() if not any(part in name for part in skip)]
    taken = target.state_dict()
    assert len(given) >= len(taken)
    for (name, tensor), (own, value) in zip(given, taken.items()):
        assert tensor.shape == value.shape, f"{name} {tuple(tensor.shape)} for {own} {tuple(value.shape)}"
        taken[own] = tensor
    target.load_state_dict(taken)
    return len(taken)


def backbone_of(name: str, layers: int) -> tuple[DetectionModel, nn.Sequential]:
    """A shipped model in eval mode and its first layers, which must follow one another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DetectionModel(name, nc=1).eval()
    assert all(row.sources == (row.index - 1,) for row in model.rows[:layers])
    return model, model.model[:layers]


@torch.no_grad()
def layer_outputs(model: DetectionModel, image: torch.Tensor, layers: int) -> list[torch.Tensor]:
    """Outputs of the first layers for images in 0..1, the model's own normalisation included."""
    outputs = []
    handles = [m.register_forward_hook(lambda m, x, y: outputs.append(y)) for m in model.model[:layers]]
    model(image)
    for handle in handles:
        handle.remove()
    return outputs


@torch.no_grad()
def assert_equal_layers(ours: list[torch.Tensor], blocks: list[nn.Module], image: torch.Tensor) -> None:
    """Every output must equal the reference's block's, which is fed `image`, normalised its own way."""
    y = image
    for i, (x, block) in enumerate(zip(ours, blocks, strict=True)):
        y = block(y)
        assert x.shape == y.shape
        error = float((x - y).abs().max() / y.abs().max())
        assert error <= TOLERANCE, f"layer {i}: {error:.1e} of the largest value"
