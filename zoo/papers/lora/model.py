"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv:2106.09685): the layers. What is done with them is in adapt.py.

A layer of k inputs and d outputs has the pre-trained weight W_0 (d, k); an adapter of rank r is A (r, k) and B (d, r), scaled by alpha / r. Of a
convolution, k is (inputs, *kernel). A layer doesn't go into another one, it becomes an adapted one itself: its parameters keep their names, and
`lora.<adapter>.A` and `lora.<adapter>.B` come to them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHOLE = (True,)


class LowRank(nn.Module):
    """Delta W = alpha / r B A (section 4.1). A starts Gaussian and B at zero, so that training starts at W_0.

    The paper doesn't say how wide the Gaussian is: here it has the variance 1 / (3 k) of the uniform distribution in the authors' code.

    Args:
        weight: W_0 (d, *k); A and B lie on its device, in its format or, if that has 16 bits, in fp32.
        rank: r.
        dropout: on x, in training.
        parts: of a fused layer, which of its equal parts are adapted, each by an A and a B of its own: those of all lie in A (parts r, *k) and
            B (parts d / len(parts), r).
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, dropout: float = 0.0, parts: tuple[bool, ...] = WHOLE):
        super().__init__()
        d, *k = weight.shape
        form = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.rank, self.alpha, self.scale, self.parts = rank, alpha, alpha / rank, parts
        self.A = nn.Parameter(torch.empty(sum(parts) * rank, *k, **form))
        self.B = nn.Parameter(torch.zeros(sum(parts) * (d // len(parts)), rank, **form))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.A, std=(3 * math.prod(k)) ** -0.5)

    def whole_B(self) -> Tensor:  # (d, parts r): each part's B in its own rows and columns
        if self.parts == WHOLE:
            return self.B
        each = iter(self.B.chunk(sum(self.parts)))
        rows = len(self.B) // sum(self.parts)
        return torch.block_diag(*[next(each) if adapted else self.B.new_zeros(rows, 0) for adapted in self.parts])

    def delta(self) -> Tensor:  # Delta W (d, *k)
        return (self.scale * self.whole_B() @ self.A.flatten(1)).unflatten(1, self.A.shape[1:])

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}"


class Adapted(nn.Module):
    """h = W_0 x + Delta W x (eq. 3), mixed into the class of a layer; without an active adapter h = W_0 x.

    Merging never touches W_0: `merged` is a second weight beside it, of which no state dict knows.
    """

    lora: nn.ModuleDict  # adapter -> LowRank
    active: str | None
    rows: tuple[int, dict[str, Tensor]] | None  # how many items a batch has, and which of them go through which adapter: see `mixed`
    merged: Tensor | None  # W_0 + Delta W

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            return self.mix(self.product(x, self.weight, self.bias), x)
        if self.merged is not None:
            return self.product(x, self.merged, self.bias)
        if self.active is None:
            return self.product(x, self.weight, self.bias)
        return self.adapted(x, self.lora[self.active])

    def adapted(self, x: Tensor, adapter: LowRank) -> Tensor:
        """W_0 x + Delta W x."""
        return self.product(x, self.weight, self.bias) + self.change(x, adapter)

    def change(self, x: Tensor, adapter: LowRank) -> Tensor:
        """Delta W x, in two thin products; in the format of x, whatever A and B are stored in."""
        u = self.product(adapter.dropout(x), adapter.A.to(x.dtype))
        return self.expand(u, adapter.scale * adapter.whole_B().to(x.dtype))

    def mix(self, h: Tensor, x: Tensor) -> Tensor:
        """h = W_0 x, and to it each item's own Delta W x."""
        items, rows = self.rows
        if len(x) != items:
            raise ValueError(f"a layer got {len(x)} items, but adapters are named for {items}: mixed() needs a model that keeps items apart")
        for name, index in rows.items():
            if name in self.lora:
                h = h.index_add(0, index, self.change(x[index], self.lora[name]))
        return h

    def train(self, mode: bool = True) -> nn.Module:
        """Training ends a merge, since through a merged weight no adapter would learn."""
        if mode:
            self.merged = None
        return super().train(mode)

    @torch.no_grad()
    def merge(self) -> None:
        """W = W_0 + Delta W of the active adapter."""
        adapter = self.lora[self.active]
        self.merged = (self.weight.to(adapter.A.dtype) + adapter.delta()).to(self.weight.dtype)


class LoraLinear(Adapted, nn.Linear):
    def adapted(self, x: Tensor, adapter: LowRank) -> Tensor:
        """The sum as one product that is added to the other in place, which saves a pass over h and two over its gradient."""
        h = self.product(x.reshape(-1, self.in_features), self.weight, self.bias)
        u = self.product(adapter.dropout(x), adapter.A.to(x.dtype)).reshape(len(h), len(adapter.A))
        h.addmm_(u, adapter.whole_B().to(h.dtype).T, alpha=adapter.scale)
        return h.view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # (..., k) -> (..., d)
        return F.linear(x, weight, bias)

    def expand(self, u: Tensor, B: Tensor) -> Tensor:  # (..., r) -> (..., d)
        return F.linear(u, B)


class AdaptedConv(Adapted):
    """A convolves as W_0 does, to r channels; B maps these to d channels at each place."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # (N, C, ...) -> (N, d, ...)
        return self._conv_forward(x, weight, bias)

    def expand(self, u: Tensor, B: Tensor) -> Tensor:  # (N, r, ...) -> (N, d, ...)
        axes = self.weight.ndim - 2
        return (F.conv1d, F.conv2d, F.conv3d)[axes - 1](u, B.reshape(*B.shape, *[1] * axes))


class LoraConv1d(AdaptedConv, nn.Conv1d):
    pass


class LoraConv2d(AdaptedConv, nn.Conv2d):
    pass


class LoraConv3d(AdaptedConv, nn.Conv3d):
    pass


class Still(nn.Module):
    """A frozen batch norm, whose statistics are frozen, too: it never trains."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


class StillBatchNorm1d(Still, nn.BatchNorm1d):
    pass


class StillBatchNorm2d(Still, nn.BatchNorm2d):
    pass


class StillBatchNorm3d(Still, nn.BatchNorm3d):
    pass


LAYERS = {nn.Linear: LoraLinear, nn.Conv1d: LoraConv1d, nn.Conv2d: LoraConv2d, nn.Conv3d: LoraConv3d}
STILL = {nn.BatchNorm1d: StillBatchNorm1d, nn.BatchNorm2d: StillBatchNorm2d, nn.BatchNorm3d: StillBatchNorm3d}
