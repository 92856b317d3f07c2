"""The layer: who goes to which expert (gates), how the tokens get there and back (dispatch), what the experts make of them.

N tokens (the paper's X), D width, E experts (the paper's n), H their hidden width, k experts a token; R rows, one for each token that an expert
gets: R = N k unless experts are full. Hierarchical: a groups of b = E / a experts.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

TRACES_ALL = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)  # grouped_mm in every dtype; torch 2.11 compiles it in bf16 only

# ---- rows sorted by expert ----


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each row times the matrix of its expert, without a loop over experts: (R, A), (E, A, B) -> (R, B).

    By torch's grouped_mm where it can: fp32, bf16 and fp16 in rows of whole 16 bytes, not fp64; else by `padded_matmul`.

    Args:
        ends: (E,), rows are sorted by expert, and those of expert i end before row ends[i]; ends[-1] = R.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):  # which grouped_mm doesn't know of
        x, weight = x.to(torch.get_autocast_dtype(device)), weight.to(torch.get_autocast_dtype(device))
    if _grouped_mm_takes(x, weight):
        return F.grouped_mm(x, weight, offs=ends.int())
    return padded_matmul(x, weight, ends)


def _grouped_mm_takes(x: Tensor, weight: Tensor) -> bool:
    aligned = all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])
    there = hasattr(F, "grouped_mm") and (x.device.type == "cpu" or (x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0)))
    traced = x.dtype == torch.bfloat16 or TRACES_ALL or not torch.compiler.is_compiling()
    return there and aligned and traced and len(x) > 0 and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def padded_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same as one batched product: experts get as many rows as the busiest one has, a number for which a GPU has to be waited for."""
    starts = F.pad(ends, (1, -1))
    length = int((ends - starts).max())
    row = torch.arange(len(x), device=x.device)
    expert = torch.searchsorted(ends, row, right=True)
    padded = (starts[:, None] + row[:length]).clamp(max=len(x) - 1)  # (E, length); what fills up is some row or other: nobody reads it
    y = torch.bmm(x.index_select(0, padded.flatten()).view(len(weight), length, x.shape[1]), weight)
    return y.flatten(0, 1).index_select(0, expert * length + row - starts[expert])


class Dispatch(NamedTuple):
    """Who works on what."""

    tokens: Tensor  # (R,) the token of each row; rows are sorted by expert
    ends: Tensor  # (E,) where the rows of each expert end
    rows: Tensor  # (N, k) the row of each assignment
    kept: Tensor | None  # (N, k) false where the expert was full; None without a capacity


def dispatch(chosen: Tensor, experts: int, capacity: int | None = None) -> Dispatch:
    """Sorts what the gate assigned, (N, k) expert numbers, by expert.

    Args:
        capacity: rows of every expert, whether used or not, so that all sizes are known beforehand: R = E capacity. An expert that more
            tokens want serves those that come first. None: R = N k, nothing is dropped.
    """
    sorted_, order = chosen.flatten().sort(stable=True)
    place = torch.arange(len(order), device=chosen.device)
    ends = torch.searchsorted(sorted_, torch.arange(experts, device=chosen.device), right=True)
    rows, tokens = torch.empty_like(order).scatter_(0, order, place), order // chosen.shape[1]
    if capacity is None:
        return Dispatch(tokens, ends, rows.view_as(chosen), None)
    starts = F.pad(ends, (1, -1))
    slots = (starts[:, None] + torch.arange(capacity, device=chosen.device)).clamp(max=len(order) - 1)  # (E, C); nobody reads unused ones
    rank = rows.view_as(chosen) - starts[chosen]
    ends = capacity * torch.arange(1, experts + 1, device=chosen.device)
    return Dispatch(tokens[slots.flatten()], ends, chosen * capacity + rank.clamp(max=capacity - 1), rank < capacity)


# ---- gates ----


class Routing(NamedTuple):
    """What a gate decides about N tokens."""

    experts: Tensor  # (N, k) int64
    weights: Tensor  # (N, k) G(x) of these
    sums: tuple[Tensor, ...]  # over the tokens: what `gate.totals` makes Importance(X) and Load(X) of, once added over ranks


def cv_squared(values: Tensor) -> Tensor:
    """CV^2, the square of the coefficient of variation: variance / mean^2 of (E,) values, all of them counted (biased)."""
    return values.var(correction=0) / values.mean().square().clamp(min=1e-20)


def noisy_top_k(clean: Tensor, spread: Tensor, k: int, noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Section 2.1 and appendix A.

    H(x) = clean + epsilon spread,  epsilon ~ N(0, 1)                     equation 4; a number for each token and expert
    G(x) = Softmax(KeepTopK(H(x), k))                                     equations 3 and 5; all but the k largest are -inf
    P(x, i) = Phi((clean_i - kth_excluding(H(x), k, i)) / spread_i)       equations 8 and 9

    P is the probability that i is among the k largest if only its own noise were drawn anew; without noise it is 1 or 0.

    Args:
        clean: (N, E), x W_g.
        spread: (N, E), Softplus(x W_noise).

    Returns:
        the experts (N, k), G(x) of these (N, k), P (N, E).
    """
    n = clean.shape[1]
    h = clean + torch.randn_like(clean) * spread if noisy else clean
    top, chosen = h.topk(min(k + 1, n), dim=1)
    weights, chosen = top[:, :k].softmax(1), chosen[:, :k]
    among = torch.zeros_like(clean).scatter(1, chosen, 1.0)
    if not noisy or k == n:
        return chosen, weights, among
    threshold = torch.where(among.bool(), top[:, k:], top[:, k - 1 : k])  # one of the k largest must beat the k+1-th, another one the k-th
    return chosen, weights, torch.special.ndtr((clean - threshold) / spread)


class BalancedGate(nn.Module):
    """What both gates of the paper share: their losses (section 4), to be weighted by w_importance and w_load."""

    def totals(self, importance: Tensor, load: Tensor) -> tuple[Tensor, Tensor]:
        """Importance(X) and Load(X), (E,) each, of the sums in a Routing."""
        return importance, load

    def losses(self, importance: Tensor, load: Tensor) -> dict[str, Tensor]:
        """CV(Importance(X))^2 and CV(Load(X))^2 (equations 7 and 11), of sums over the whole batch."""
        return {"importance": cv_squared(importance), "load": cv_squared(load)}


class NoisyTopKGate(BalancedGate):
    """G(x) of `noisy_top_k`, from x W_g and Softplus(x W_noise), in fp32 at least. Noise is drawn in training only, where dropout would be.

    Raises:
        ValueError: if k is not from 1 to `experts`.
    """

    def __init__(self, d_model: int, experts: int, k: int):
        super().__init__()
        check_positive(d_model=d_model, experts=experts)
        check_k(k, experts)
        self.experts, self.k = experts, k
        # No signal and some noise, so that the load is even at first (appendix A).
        self.w_gate = nn.Parameter(torch.zeros(d_model, experts))
        self.w_noise = nn.Parameter(torch.zeros(d_model, experts))

    def forward(self, x: Tensor) -> Routing:  # (N, D)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            chosen, weights, p = noisy_top_k(x @ self.w_gate, F.softplus(x @ self.w_noise), self.k, self.training)
        return Routing(chosen, weights, (sum_by(chosen, weights, self.experts), p.sum(0)))


class HierarchicalGate(BalancedGate):
    """Appendix B: a primary gate chooses k of `groups` groups, and the gate of each chosen group k of its experts.

    G(x)_{i,j} = G_primary(x)_i G_i(x)_j                                  in equation 12
    Importance_H(X)_{i,j} = sum_x G_primary(x)_i G_i(x)_j                 equation 13
    Load_H(X)_{i,j} = Load_primary(X)_i Load_i(X^(i))_j / |X^(i)|         equation 14; X^(i): the tokens with G_primary(x)_i > 0

    Raises:
        ValueError: if groups don't divide the experts, or k is not from 1 to the number of groups and that of experts in a group.
    """

    def __init__(self, d_model: int, experts: int, k: int, groups: int):
        super().__init__()
        check_positive(d_model=d_model, experts=experts, groups=groups)
        if experts % groups:
            raise ValueError(f"experts {experts} do not divide into {groups} groups of equal size")
        check_k(k, groups, "groups")
        check_k(k, experts // groups, "experts of a group")
        self.experts, self.k, self.groups = experts, k * k, groups
        self.primary = NoisyTopKGate(d_model, groups, k)
        self.w_gate = nn.Parameter(torch.zeros(groups, d_model, experts // groups))
        self.w_noise = nn.Parameter(torch.zeros(groups, d_model, experts // groups))

    def forward(self, x: Tensor) -> Routing:  # (N, D)
        first = self.primary(x)
        sent = dispatch(first.experts, self.groups)
        group = first.experts.flatten().sort(stable=True).values  # (R,)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(first.weights.dtype).index_select(0, sent.tokens)
            clean, noise = (grouped_matmul(rows, w, sent.ends) for w in (self.w_gate, self.w_noise))
            chosen, weights, p = noisy_top_k(clean, F.softplus(noise), self.primary.k, self.training)  # (R, k), (R, k), (R, b)
        experts = (group[:, None] * p.shape[1] + chosen)[sent.rows].flatten(1)  # (N, k, k) -> (N, k^2)
        weights = (first.weights[..., None] * weights[sent.rows]).flatten(1)
        loads = p.new_zeros(self.groups, p.shape[1]).index_add(0, group, p)  # Load_i(X^(i))_j
        sizes = sent.ends.diff(prepend=sent.ends.new_zeros(1)).to(p.dtype)  # |X^(i)|
        return Routing(experts, weights, (sum_by(experts, weights, self.experts), first.sums[1], loads, sizes))

    def totals(self, importance: Tensor, primary_load: Tensor, loads: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        return importance, (primary_load[:, None] * loads / sizes.clamp(min=1)[:, None]).flatten()


def sum_by(chosen: Tensor, weights: Tensor, experts: int) -> Tensor:
    """(N, k), (N, k) -> (E,): the weights that each expert got in all."""
    return weights.new_zeros(experts).index_add(0, chosen.flatten(), weights.flatten())


def check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def check_k(k: int, there: int, what: str = "experts") -> None:
    if not 1 <= k <= there:
        raise ValueError(f"k is how many {what} a token gets: from 1 to the {there} {what}, not {k}")


# ---- the layer ----


def check_tokens(model: nn.Module, facts: dict[str, int]) -> None:
    """ValueError where a rank takes fewer tokens at once than a layer has experts, some of which would never see one."""
    tokens = facts.get("tokens", math.inf)
    most = max((layer.gate.experts for layer in model.modules() if isinstance(layer, MixtureOfExperts)), default=0)
    if most > tokens:
        remedy = "raise data.batch_size or data.window, or lower model.experts or trainer.accumulate"
        raise ValueError(f"{most} experts are more than the {tokens} tokens that a rank takes at once: {remedy}")


class AllToAll(torch.autograd.Function):
    """Rows sorted by the rank that they go to; `send` and `receive` are how many go to and come from each. Gradients go the other way."""

    @staticmethod
    def forward(ctx, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = receive, send, group
        arrived = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), receive, send, group=group)
        return arrived

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return AllToAll.apply(gradient, *ctx.way), None, None, None


class SumOverRanks(torch.autograd.Function):
    """The sum, on every rank. Each rank's loss may depend on it, so that the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, total = group, values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return SumOverRanks.apply(gradient, ctx.group), None


class ExpertUse(NamedTuple):
    """How a batch used the experts of a layer."""

    losses: dict[str, Tensor]  # of the gate; the only part with gradients
    importance: Tensor  # (E,)
    load: Tensor  # (E,)
    dropped: Tensor | None  # share of the assignments that found their expert full; None without a capacity

    def statistics(self) -> dict[str, Tensor]:
        """CV(Importance), CV(Load) and max(Load) / mean(Load), as in table 6; where experts have a capacity, the percentage that was dropped."""
        cvs = {"cv_importance": cv_squared(self.importance).sqrt(), "cv_load": cv_squared(self.load).sqrt()}
        dropped = {} if self.dropped is None else {"dropped": 100 * self.dropped}
        return {**cvs, "max_load": self.load.max() / self.load.mean().clamp(min=1e-10), **dropped}


class MixtureOfExperts(nn.Module):
    """y = sum_i G(x)_i E_i(x) (equation 1), E_i(x) = W2_i ReLU(W1_i x): networks of one hidden layer, without biases (appendix C.1).

    Expert parallelism (section 3.1): after `share_experts` each of P ranks holds E / P experts and brings its own tokens, which travel to
    their experts and back by all-to-all. The losses are of the tokens of all ranks. P ranks compute what one does, except that each fills its
    share of an expert's capacity for itself. The gate is the same on all ranks: its gradients, like those of all other layers, are to be
    averaged or summed over the ranks; those of the experts are sums over all ranks already.

    Args:
        gate: (N, D) -> Routing, with the attributes `experts` and `k` and the methods `totals` and `losses` of a BalancedGate.
        hidden: H.
        capacity_factor: in training an expert serves at most ceil(capacity_factor k N / E) tokens. What it can't serve gets nothing from it.
            None: all tokens are served. In evaluation they always are, so that an answer doesn't depend on what else is in the batch.
        dropout: of the experts' hidden units.

    Raises:
        ValueError: if an argument is out of range, or the input is not (..., D).
    """

    group: dist.ProcessGroup | None = None  # of the ranks that share the experts

    def __init__(self, gate: nn.Module, d_model: int, hidden: int, capacity_factor: float | None = None, dropout: float = 0.0):
        super().__init__()
        check_positive(d_model=d_model, hidden=hidden)
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise ValueError(f"capacity_factor must be above 0, or None for no limit, not {capacity_factor}")
        self.gate, self.capacity_factor = gate, capacity_factor
        self.dropout = nn.Dropout(dropout)
        self.w1 = nn.Parameter(torch.empty(gate.experts, d_model, hidden))
        self.w2 = nn.Parameter(torch.empty(gate.experts, hidden, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper says nothing: U[-1/sqrt(n), 1/sqrt(n)] for n inputs, as torch's linear layers."""
        for weight in (self.w1, self.w2):
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)

    def share_experts(self, mesh: DeviceMesh) -> None:
        """From now on each rank holds its part of the experts: w1 and w2 become distributed tensors. A collective, on ranks that hold the same.

        Raises:
            ValueError: if the experts don't divide among the ranks.
        """
        from torch.distributed.tensor import Shard, distribute_tensor

        if self.gate.experts % mesh.size():
            raise ValueError(f"{self.gate.experts} experts do not divide among {mesh.size()} ranks")
        self.group = mesh.get_group()
        for name, weight in (("w1", self.w1), ("w2", self.w2)):
            setattr(self, name, nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)]), weight.requires_grad))

    def forward(self, x: Tensor, uses: list[ExpertUse] | None = None) -> Tensor:
        """(..., D) -> (..., D).

        Args:
            uses: a list that gets an ExpertUse.
        """
        if x.ndim < 2 or x.shape[-1] != self.w1.shape[1]:
            raise ValueError(f"the experts take tokens of width {self.w1.shape[1]}, (..., {self.w1.shape[1]}), not {tuple(x.shape)}")
        tokens = x.flatten(0, -2)  # (N, D)
        routing = self.gate(tokens)
        sent = dispatch(routing.experts, self.gate.experts, self.capacity(len(tokens)))
        if uses is not None:
            uses.append(self.use(routing, sent))
        rows = tokens.index_select(0, sent.tokens)  # (R, D)
        answers = self.answer(rows, sent.ends) if self.group is None else self.across_ranks(rows, sent.ends)
        answers = answers.index_select(0, sent.rows.flatten()).unflatten(0, sent.rows.shape)  # (N, k, D)
        weights = routing.weights if sent.kept is None else routing.weights * sent.kept
        return (weights.to(answers.dtype)[..., None] * answers).sum(1).view(x.shape)

    def capacity(self, tokens: int) -> int | None:
        """C, how many tokens an expert serves at most."""
        if self.capacity_factor is None or not self.training:
            return None
        return math.ceil(self.capacity_factor * self.gate.k * tokens / self.gate.experts)

    def answer(self, rows: Tensor, ends: Tensor) -> Tensor:
        """E_i(x) of rows sorted by expert: (R, D) -> (R, D)."""
        w1, w2 = (weight if self.group is None else weight.to_local() for weight in (self.w1, self.w2))
        hidden = self.dropout(F.relu(grouped_matmul(rows, w1, ends)))
        return grouped_matmul(hidden, w2, ends)

    def across_ranks(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The same where the experts live on several ranks: rows go there, answers come back."""
        ranks = self.group.size()
        local = self.gate.experts // ranks
        counts = ends.diff(prepend=ends.new_zeros(1)).view(ranks, local)
        arriving = torch.empty_like(counts)  # [p, i]: rows that rank p sends to expert i here
        dist.all_to_all_single(arriving, counts, group=self.group)
        send, receive = torch.stack([counts.sum(1), arriving.sum(1)]).tolist()  # the one wait for the device
        rows = AllToAll.apply(rows, send, receive, self.group)
        expert = torch.arange(local, device=rows.device).expand(ranks, local).flatten().repeat_interleave(arriving.flatten())
        here = dispatch(expert[:, None], local)
        answers = self.answer(rows.index_select(0, here.tokens), here.ends).index_select(0, here.rows[:, 0])
        return AllToAll.apply(answers, receive, send, self.group)

    def use(self, routing: Routing, sent: Dispatch) -> ExpertUse:
        sums = routing.sums
        if self.group is not None:
            flat = SumOverRanks.apply(torch.cat([values.flatten() for values in sums]), self.group)
            sums = [part.view_as(values) for part, values in zip(flat.split([values.numel() for values in sums]), sums)]
        importance, load = self.gate.totals(*sums)
        dropped = None if sent.kept is None else 1 - sent.kept.to(load.dtype).mean()
        return ExpertUse(self.gate.losses(importance, load), importance.detach(), load.detach(), dropped)
