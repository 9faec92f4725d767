"""MobileViT (arXiv 2110.02178): inverted residuals, and attention between the patches of a map.

Children are named as in timm's `mobilevit_*`, so its stages map onto rows one to one: `stem`,
`stages.i.0` (MV2Block) and `stages.i.1` (MobileViTAttention). BatchNorm (eps 1e-5, momentum 0.1) and SiLU
throughout, LayerNorm (eps 1e-5) inside the transformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.depthwise import convolution


class ConvBNSiLU(nn.Module):
    """Convolution, BatchNorm (eps 1e-5, momentum 0.1), SiLU where `act`: MobileViT's unit and stem."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = convolution(c1, c2, k, s, k // 2, g)
        self.bn = nn.BatchNorm2d(c2, eps=1e-5, momentum=0.1)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/s, W/s)."""
        return self.act(self.bn(self.conv(x)))


class MV2Block(nn.Module):
    """MobileNetV2's inverted residual with SiLU ("MV2" in the paper's figure 1b); the projection is linear.

    The expansion is there at every `expand`, as in the paper's code; the input is added at stride 1 where the
    widths agree.
    """

    def __init__(self, c1: int, c2: int, stride: int = 1, expand: int | float = 4) -> None:
        super().__init__()
        hidden = round(c1 * expand)
        self.conv1_1x1 = ConvBNSiLU(c1, hidden)
        self.conv2_kxk = ConvBNSiLU(hidden, hidden, 3, stride, hidden)
        self.conv3_1x1 = ConvBNSiLU(hidden, c2, act=False)
        self.add = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) -> (N, c2, H/stride, W/stride)."""
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.add else y


class _Attention(nn.Module):
    """Multi-head self-attention among the tokens of one place; q, k and v come from one linear layer.

    The places stand beside the heads, neither of which see each other, so no tensor has more than five axes
    and the first is always the batch: runtimes for phones know no more.
    """

    def __init__(self, dim: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads = heads
        self.places = places
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, places * L, dim) -> the same shape."""
        n, tokens, dim = x.shape
        length, width = tokens // self.places, dim // self.heads

        def by_head(t: Tensor) -> Tensor:
            t = t.reshape(n, self.places, length, self.heads, width).transpose(2, 3)
            return t.reshape(n, self.places * self.heads, length, width)

        y = F.scaled_dot_product_attention(*map(by_head, self.qkv(x).chunk(3, -1)))
        y = y.reshape(n, self.places, self.heads, length, width).transpose(2, 3)
        return self.proj(y.reshape(n, tokens, dim))


class _Mlp(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _TransformerLayer(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, places: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = _Attention(dim, heads, places)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = _Mlp(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MobileViTAttention(nn.Module):
    """The MobileViT block: convolution for the neighbourhood, a transformer for the whole map (section 3.1).

    Pixels at one place of their patches attend to each other, over all patches. A map whose height or width
    is no multiple of the patch is resized to one, bilinearly, and back after the transformer, as the paper's
    own code does; so every size works with every patch.

    Args:
        c1: channels that come in.
        c_in: the same as the YAML states it (scaled by width_multiple); it must equal c1, and comes out.
        dim, depth, mlp_dim: the transformer's width, layers and the width inside its MLP. width_multiple
            scales dim and mlp_dim like c_in.
        kernel: of the two spatial convolutions, odd.
        patch: pixels per side of a patch.
        heads: of the attention; they must divide dim.
    """

    def __init__(
        self,
        c1: int,
        c_in: int,
        dim: int,
        depth: int,
        kernel: int,
        patch: int,
        mlp_dim: int,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_kxk = ConvBNSiLU(c1, c1, kernel)
        self.conv_1x1 = nn.Conv2d(c1, dim, 1, bias=False)
        self.transformer = nn.Sequential(
            *(_TransformerLayer(dim, heads, mlp_dim, patch * patch) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.conv_proj = ConvBNSiLU(dim, c_in)
        self.conv_fusion = ConvBNSiLU(c1 + c_in, c_in, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_in, H, W), any H and W."""
        y = self.conv_proj(self._global(self.conv_1x1(self.conv_kxk(x))))
        return self.conv_fusion(torch.cat((x, y), 1))

    def _global(self, x: Tensor) -> Tensor:
        """The transformer over the patches of (N, dim, H, W)."""
        n, c, h, w = x.shape
        p = self.patch
        rows, columns = (h + p - 1) // p, (w + p - 1) // p
        # A trace must hold for sizes it has not seen, so it resizes always: to its own size a map is kept.
        resize = torch.jit.is_tracing() or h % p != 0 or w % p != 0
        if resize:
            x = F.interpolate(x, size=(rows * p, columns * p), mode="bilinear", align_corners=False)
        # Channels by places by patches; attention wants places by patches by channels.
        x = F.pixel_unshuffle(x, p).reshape(n, c, p * p, rows * columns).permute(0, 2, 3, 1)
        x = self.norm(self.transformer(x.reshape(n, p * p * rows * columns, c)))
        x = x.reshape(n, p * p, rows * columns, c).permute(0, 3, 1, 2)
        x = F.pixel_shuffle(x.reshape(n, c * p * p, rows, columns), p)
        return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False) if resize else x
