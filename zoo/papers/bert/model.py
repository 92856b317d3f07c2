"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin, Chang, Lee, Toutanova, 2018, arXiv:1810.04805).

B batch, T tokens, P hidden tokens of a sequence, D width (the paper's H), h heads (A), L layers, V vocabulary, K classes or tags.
x is what flows through the encoder, T_i of figure 1 its last value at token i, C that at [CLS].
"""

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Maps = list[Tensor] | None  # where attention leaves its weights
EPS = 1e-12  # of the layer norms, as in the authors' code (github.com/google-research/bert)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, maps: Maps = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, eq. 1), with dropout on the weights; torch's fused form unless they are wanted.

    Args:
        q, k, v: (B, h, T, d).
        mask: true where there is something to attend to; broadcasts to (B, h, T, T).
        maps: a list that gets the weights (B, h, T, T), before dropout; slow, and takes T x T memory.

    Returns:
        (B, h, T, d).
    """
    if maps is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    maps.append(scores.softmax(-1))
    return F.dropout(maps[-1], dropout) @ v


class SelfAttention(nn.Module):
    """MultiHead(x, x, x) (Vaswani et al. 2017, section 3.2.2); queries, keys and values of all heads are one matrix."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None, maps: Maps = None) -> Tensor:  # (B, T, D) -> (B, T, D)
        q, k, v = rearrange(self.qkv(x), "B T (three h d) -> three B h T d", three=3, h=self.n_heads)
        attended = attention(q, k, v, mask, self.dropout if self.training else 0.0, maps)
        return self.out(rearrange(attended, "B h T d -> B T (h d)"))


class Layer(nn.Module):
    """Two sub-layers, each as LayerNorm(x + Dropout(Sublayer(x))): self-attention, then GELU(x W_1 + b_1) W_2 + b_2 (section 3)."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float, gelu: Literal["erf", "tanh"] = "erf", eps: float = EPS):
        super().__init__()
        self.attention = SelfAttention(d_model, n_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model, eps)
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)
        self.norm2 = nn.LayerNorm(d_model, eps)
        self.dropout = nn.Dropout(dropout)
        self.gelu = gelu_of(gelu)

    def forward(self, x: Tensor, mask: Tensor | None = None, maps: Maps = None) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = self.norm1(x + self.dropout(self.attention(x, mask, maps)))
        return self.norm2(x + self.dropout(self.fc2(self.gelu(self.fc1(x)))))


def gelu_of(kind: Literal["erf", "tanh"]):
    """x Phi(x), or its approximation by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return partial(F.gelu, approximate={"erf": "none", "tanh": "tanh"}[kind])


class Embeddings(nn.Module):
    """Dropout(LayerNorm(E_token + E_segment + E_position)) (figure 2)."""

    def __init__(self, vocab_size: int, max_length: int, segments: int, d_model: int, dropout: float, eps: float = EPS):
        super().__init__()
        self.word = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(max_length, d_model)
        self.segment = nn.Embedding(segments, d_model)
        self.norm = nn.LayerNorm(d_model, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, positions: Tensor | None = None) -> Tensor:  # (B, T) each -> (B, T, D)
        length, most = tokens.shape[1], self.position.num_embeddings
        if length > most:
            raise ValueError(f"{length} tokens are more than the {most} positions of the model: cut the texts, or raise max_length")
        segment = self.segment.weight[0] if segments is None else self.segment(segments)
        position = self.position.weight[:length] if positions is None else self.position(positions)
        return self.dropout(self.norm(self.word(tokens) + segment + position))


class MaskedHead(nn.Module):
    """Which token was here? softmax(LayerNorm(GELU(W T_i + b)) E^T + bias) (task 1), E the token embeddings: logits (..., D) -> (..., V)."""

    def __init__(self, vocab_size: int, d_model: int, gelu: Literal["erf", "tanh"] = "erf", eps: float = EPS):
        super().__init__()
        self.transform = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.gelu = gelu_of(gelu)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.norm(self.gelu(self.transform(x))), embedding, self.bias)


class Output(nn.Module):
    """Dropout and one linear layer, all that fine-tuning adds (section 3.2): (..., D) -> (..., K)."""

    def __init__(self, d_model: int, outputs: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(d_model, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))


class Bert(nn.Module):
    """The encoder of figure 1, and what is put on top of it:

    | head | output |
    |---|---|
    | None | T_i (B, T, D), the same as `forward_features` |
    | "pooler" | tanh(W C + b) (B, D), which the next heads build on |
    | "pretraining" | logits of the tokens (B, P, V), and of "B follows A" (B, 2), yes first, as in the authors' code |
    | "masked" | logits of the tokens (B, P, V); no pooler (table 5, No NSP) |
    | "classification" | logits (B, outputs); with one output: regression |
    | "spans" | logits (B, T, 2) of a span's first and of its last token (section 4.2); no pooler |
    | "tagging" | logits (B, T, outputs), a tag for each token (section 5.3); no pooler |

    Args:
        segments: kinds of segments, A and B.
        max_length: learned positions, the most tokens that can be read.
        dropout: everywhere, on the weights of attention, too.
        gelu: "erf", exact, or "tanh", the approximation to which the authors' code changed; they differ by less than 5e-4.
        outputs: K, of the heads that say so.
        causal: a token sees those before it only: the left-to-right model of table 5.

    Raises:
        ValueError: if heads don't divide D, or an argument is out of range.
    """

    def __init__(
        self,
        vocab_size: int = 30_522,
        depth: int = 12,
        d_model: int = 768,
        n_heads: int = 12,
        d_ff: int = 3072,
        max_length: int = 512,
        segments: int = 2,
        dropout: float = 0.1,
        gelu: Literal["erf", "tanh"] = "erf",
        head: Literal["pooler", "pretraining", "masked", "classification", "spans", "tagging"] | None = "pooler",
        outputs: int = 2,
        causal: bool = False,
    ):
        super().__init__()
        sizes = {"vocab_size": vocab_size, "depth": depth, "d_model": d_model, "n_heads": n_heads, "d_ff": d_ff}
        check(sizes | {"max_length": max_length, "segments": segments, "outputs": outputs}, dropout, gelu)
        heads = {
            "pretraining": lambda: MaskedHead(vocab_size, d_model, gelu),
            "masked": lambda: MaskedHead(vocab_size, d_model, gelu),
            "classification": lambda: Output(d_model, outputs, dropout),
            "spans": lambda: Output(d_model, 2, 0.0),
            "tagging": lambda: Output(d_model, outputs, dropout),
        }
        if head not in (None, "pooler", *heads):
            raise ValueError(f"unknown head {head!r}: use {', '.join(map(repr, ('pooler', *heads)))} or None")
        self.vocab_size, self.max_length, self.causal, self.kind = vocab_size, max_length, causal, head
        self.embeddings = Embeddings(vocab_size, max_length, segments, d_model, dropout)
        self.layers = nn.ModuleList(Layer(d_model, n_heads, d_ff, dropout, gelu) for _ in range(depth))
        self.pooler = nn.Linear(d_model, d_model) if head in ("pooler", "pretraining", "classification") else None
        self.next = nn.Linear(d_model, 2) if head == "pretraining" else None  # does B follow A? (task 2)
        self.head = heads[head]() if head in heads else None
        initialise(self)

    def forward_features(self, tokens: Tensor, segments: Tensor | None = None, attend: Tensor | None = None, maps: Maps = None) -> Tensor:
        """T_i of every token, (B, T, D).

        Args:
            tokens: (B, T) int64, [CLS] first.
            segments: (B, T) int64, 0 for A and 1 for B; all are A without it.
            attend: (B, T) bool, false at padding, which nothing attends to.
            maps: a list that gets each layer's attention weights (B, h, T, T).

        Raises:
            ValueError: if there are more tokens than positions.
        """
        x = self.embeddings(tokens, segments)
        mask = None if attend is None else attend[:, None, None]
        if self.causal:
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = before if mask is None else before & mask
        for layer in self.layers:
            x = layer(x, mask, maps)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """tanh(W C + b): (B, T, D) -> (B, D)."""
        return torch.tanh(self.pooler(x[:, 0]))

    def forward(self, tokens: Tensor, segments: Tensor | None = None, attend: Tensor | None = None, places: Tensor | None = None):
        """What the head makes of the text, see above.

        Args:
            tokens, segments, attend: see `forward_features`.
            places: (B, P) int64, where "pretraining" and "masked" shall predict the token; everywhere without it.
        """
        x = self.forward_features(tokens, segments, attend)
        if self.kind in ("pretraining", "masked"):
            logits = self.head(at(x, places), self.embeddings.word.weight)
            return logits if self.next is None else (logits, self.next(self.pool(x)))
        x = x if self.pooler is None else self.pool(x)
        return x if self.head is None else self.head(x)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights in the names of transformers become ours, so that `init` takes such a folder, too."""
        from .convert import from_transformers

        return from_transformers(state) if any("word_embeddings" in name for name in state) else state


def at(x: Tensor, places: Tensor | None) -> Tensor:
    """x at these places of each sequence: (B, T, D), (B, P) -> (B, P, D)."""
    return x if places is None else x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def initialise(model: nn.Module) -> None:
    """Matrices and embeddings normal with standard deviation 0.02, cut off at twice that, biases 0 (the authors' code)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def check(sizes: dict[str, int], dropout: float, gelu: str) -> None:
    """ValueError where an argument of the model is out of range."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if sizes["d_model"] % sizes["n_heads"]:
        raise ValueError(f"d_model {sizes['d_model']} does not divide into n_heads {sizes['n_heads']} heads of equal width")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}")
    if gelu not in ("erf", "tanh"):
        raise ValueError(f"unknown gelu {gelu!r}: use 'erf' or 'tanh'")


# Section 3. Parameters with the pooler and 30,522 tokens: 109.5M, 335.1M (the paper: 110M, 340M).
def bert_base(**kwargs) -> Bert:
    return Bert(**kwargs)


def bert_large(**kwargs) -> Bert:
    return Bert(depth=24, d_model=1024, n_heads=16, d_ff=4096, **kwargs)


# Not the paper's: the small ones of Turc et al. (2019, arXiv:1908.08962). 4.4M, 11.2M, 28.8M, 41.4M.
def bert_tiny(**kwargs) -> Bert:
    return Bert(depth=2, d_model=128, n_heads=2, d_ff=512, **kwargs)


def bert_mini(**kwargs) -> Bert:
    return Bert(depth=4, d_model=256, n_heads=4, d_ff=1024, **kwargs)


def bert_small(**kwargs) -> Bert:
    return Bert(depth=4, d_model=512, n_heads=8, d_ff=2048, **kwargs)


def bert_medium(**kwargs) -> Bert:
    return Bert(depth=8, d_model=512, n_heads=8, d_ff=2048, **kwargs)
