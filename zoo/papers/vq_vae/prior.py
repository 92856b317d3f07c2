"""The Gated PixelCNN (van den Oord et al., 2016, arXiv:1606.05328, section 2), here the prior over the codes of a VQ-VAE.

B grids of H x W codes with K values each, P channels, k x k kernels, r = k // 2; x a code's embedding, v and h the two stacks' features.
The masks of the paper's kernels leave rows above, or columns to the left: here kernels have only these. A kernel of kind A excludes what
it predicts, the row or the code itself; one of kind B includes it, as its input has not seen it either.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def gate(x: Tensor) -> Tensor:  # (B, 2P, ...) -> (B, P, ...)
    """y = tanh(x_f) * sigmoid(x_g), equation 2; what depends on the class is in x already."""
    f, g = x.chunk(2, 1)
    return f.tanh() * g.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2). Row i of v sees the rows up to i (kind B; A: above i), entry j of h the columns up to j (A: left
    of j) of its own row, and v there. So nothing of the row i reaches v's row i but through kind B layers above a kind A one: never.

    Args:
        first: kind A, and no residual connection, which would show h the code itself.
        classes: of the condition: V_f^T h and V_g^T h of equation 4 for a one-hot h; 0 for none.
    """

    def __init__(self, channels: int, kernel: int, classes: int, first: bool):
        super().__init__()
        self.r, self.first = kernel // 2, first
        reach = self.r if first else self.r + 1
        self.vertical = nn.Conv2d(channels, 2 * channels, (reach, kernel), padding=(0, self.r))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, reach))
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.condition = nn.Embedding(classes, 4 * channels) if classes else None

    def biases(self, label: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Equation 4's V^T h for the two stacks, (B, 2P, 1, 1) each."""
        return self.condition(label)[:, :, None, None].chunk(2, 1) if self.condition else (0.0, 0.0)

    def down(self, v: Tensor, bias: Tensor | float) -> Tensor:
        """r + R rows of v, (B, P, r + R, W) -> the last R rows of the vertical stack before its gate, (B, 2P, R, W)."""
        return self.vertical(v[:, :, :-1] if self.first else v) + bias

    def across(self, u: Tensor, h: Tensor, bias: Tensor | float) -> Tensor:
        """R rows of which the last S columns, (B, 2P, R, S), are known of `down`, and r + S columns of h -> those S of the next h."""
        y = self.out(gate(self.horizontal(h[..., :-1] if self.first else h) + self.link(u) + bias))
        return y if self.first else h[..., self.r :] + y


class GatedPixelCNN(nn.Module):
    """p(x) = prod_i p(x_i | x_1 ... x_(i-1)) in raster order, each a softmax over K values (equation 1).

    Args:
        codes: K.
        grid: (H, W).
        channels: P.
        layers: gated layers; the first has kind A and `first_kernel`.
        head: channels of the hidden 1x1 convolution at the end.
        classes: number of labels to condition on; 0 for none.

    Raises:
        ValueError: for even kernels or numbers below 1.
    """

    def __init__(self, codes: int, grid: tuple[int, int], channels: int = 128, layers: int = 12, kernel: int = 5, first_kernel: int = 7,
                 head: int = 256, classes: int = 0):
        super().__init__()
        if kernel % 2 == 0 or first_kernel % 2 == 0 or min(kernel, first_kernel) < 3:
            raise ValueError(f"kernel {kernel} and first_kernel {first_kernel} must be odd and at least 3: a code stands in the middle")
        if min(codes, *grid, channels, layers, head) < 1 or classes < 0:
            raise ValueError("codes, both sides of grid, channels, layers and head must be at least 1, and classes at least 0")
        self.codes, self.grid, self.classes = codes, tuple(grid), classes
        self.embedding = nn.Embedding(codes, channels)
        self.layers = nn.ModuleList(GatedLayer(channels, k, classes, i == 0) for i, k in enumerate([first_kernel] + [kernel] * (layers - 1)))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, head, 1), nn.ReLU(), nn.Conv2d(head, codes, 1))

    def forward(self, codes: Tensor, label: Tensor | None = None) -> Tensor:  # (B, H, W) int64, (B,) int64 -> logits (B, K, H, W)
        if codes.shape[1:] != self.grid:
            raise ValueError(f"codes of a grid {tuple(codes.shape[1:])} do not fit a prior of {self.grid}: set grid")
        v = h = rearrange(self.embedding(codes), "B H W P -> B P H W")
        for layer in self.layers:
            bias_v, bias_h = layer.biases(label)
            u = layer.down(F.pad(v, (0, 0, layer.r, 0)), bias_v)
            h = layer.across(u, F.pad(h, (layer.r, 0)), bias_h)
            v = gate(u)
        return self.head(h)

    @torch.no_grad()
    def generate(self, n: int, draw: Callable[[Tensor], Tensor], label: Tensor | None = None) -> Tensor:
        """n grids of codes, (n, H, W), one code after the other: `draw` turns its logits (n, K) into the codes (n,).

        Every layer's input is kept, so that a code costs one column of each horizontal layer and a row one row of each vertical one:
        together one forward pass, where repeating it for each code would cost H W.
        """
        (H, W), P, weight = self.grid, self.embedding.embedding_dim, self.embedding.weight
        codes = torch.zeros(n, H, W, dtype=torch.long, device=weight.device)
        biases = [layer.biases(label) for layer in self.layers]
        rows = [weight.new_zeros(n, P, layer.r + H, W) for layer in self.layers]  # the input of each layer's vertical stack
        for i in range(H):
            above = []
            for l, layer in enumerate(self.layers):
                above.append(layer.down(rows[l][:, :, i : i + layer.r + 1], biases[l][0]))
                if l + 1 < len(rows):
                    rows[l + 1][:, :, self.layers[l + 1].r + i] = gate(above[-1])[:, :, 0]
            columns = [weight.new_zeros(n, P, 1, layer.r + W) for layer in self.layers]  # and of its horizontal stack in this row
            for j in range(W):
                for l, layer in enumerate(self.layers):
                    h = layer.across(above[l][..., j : j + 1], columns[l][..., j : j + layer.r + 1], biases[l][1])
                    if l + 1 < len(columns):
                        columns[l + 1][..., self.layers[l + 1].r + j] = h[..., 0]
                codes[:, i, j] = draw(self.head(h)[:, :, 0, 0])
                x = self.embedding(codes[:, i, j])
                columns[0][:, :, 0, self.layers[0].r + j] = x
                rows[0][:, :, self.layers[0].r + i, j] = x
        return codes


def pixelcnn_imagenet(codes: int = 512, grid: tuple[int, int] = (32, 32), classes: int = 1000, **kwargs) -> GatedPixelCNN:
    """The prior of ImageNet's 32x32 codes, with the classes as condition; of the size of the PixelCNN paper's own (its section 3.2)."""
    return GatedPixelCNN(codes, grid, channels=384, layers=20, kernel=5, head=1024, classes=classes, **kwargs)
