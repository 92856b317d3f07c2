"""Attention Is All You Need (Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, 2017, arXiv:1706.03762).

B batch, S source tokens, T target tokens, D width (d_model), h heads, d_k and d_v = D / h widths of a head's keys and values, N layers,
V vocabulary. x is what flows through the encoder, y through the decoder; the memory is what the encoder made of the source.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Tensors = dict[str, Tensor]  # items first
Maps = list[Tensor] | None  # where attention leaves its weights


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, maps: Maps = None) -> Tensor:
    """Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V (eq. 1), in torch's fused form unless the weights are wanted.

    Args:
        q: (B, h, T, d_k).
        k: (B, h, S, d_k).
        v: (B, h, S, d_v).
        mask: (B, 1, 1, S), true where there is something to attend to.
        causal: position t sees positions up to t only (section 3.2.3).
        maps: a list that gets the weights (B, h, T, S); slow, and takes T x S memory.

    Returns:
        (B, h, T, d_v).
    """
    if maps is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    maps.append(scores.softmax(-1))
    return maps[-1] @ v


def multi_head(q: Tensor, kv: Tensor, n_heads: int, **options) -> Tensor:
    """Concat(head_1, ..., head_h) of section 3.2.2, before W^O: (B, T, h d_k), (B, S, h d_k + h d_v) -> (B, T, h d_v).

    Args:
        kv: keys of all heads, and values of all heads after them.
        options: of `attention`.
    """
    k, v = kv.tensor_split([q.shape[-1]], -1)
    q, k, v = (rearrange(x, "B T (h d) -> B h T d", h=n_heads) for x in (q, k, v))
    return rearrange(attention(q, k, v, **options), "B h T d -> B T (h d)")


class SelfAttention(nn.Module):
    """MultiHead(x, x, x) (section 3.2.2); W^Q, W^K and W^V of all heads are one matrix."""

    def __init__(self, d_model: int, n_heads: int, d_k: int, bias: bool):
        super().__init__()
        self.n_heads, self.queries = n_heads, n_heads * d_k
        self.qkv = nn.Linear(d_model, 2 * n_heads * d_k + d_model, bias)
        self.out = nn.Linear(d_model, d_model, bias)

    def forward(self, x: Tensor, past: Tensor | None = None, **options) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D), and keys and values (B, t + T, h d_k + D), those of `past` (B, t, h d_k + D) included."""
        q, kv = self.qkv(x).tensor_split([self.queries], -1)
        if past is not None:
            kv = torch.cat([past, kv], 1)
        return self.out(multi_head(q, kv, self.n_heads, **options)), kv


class MemoryAttention(nn.Module):
    """MultiHead(y, memory, memory) (section 3.2.3): the decoder attends to what the encoder made of the source.

    W^K and W^V are not here but in `Transformer.memory_kv`: all layers read the same memory, so that one product serves them all.
    """

    def __init__(self, d_model: int, n_heads: int, d_k: int, bias: bool):
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, n_heads * d_k, bias)
        self.out = nn.Linear(d_model, d_model, bias)

    def forward(self, y: Tensor, kv: Tensor, **options) -> Tensor:  # (B, T, D), (B, S, h d_k + D) -> (B, T, D)
        return self.out(multi_head(self.q(y), kv, self.n_heads, **options))


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 (eq. 2)."""

    def __init__(self, d_model: int, d_ff: int, activation: Literal["relu", "swish"]):
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)
        self.activation = {"relu": F.relu, "swish": F.silu}[activation]

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Two sub-layers (section 3.1), each as LayerNorm(x + Dropout(Sublayer(x))): the norm comes last."""

    def __init__(self, d_model: int, n_heads: int, d_k: int, d_ff: int, dropout: float, bias: bool, activation: Literal["relu", "swish"]):
        super().__init__()
        self.self_attention = SelfAttention(d_model, n_heads, d_k, bias)
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, maps: Maps = None) -> Tensor:  # (B, S, D), (B, 1, 1, S) -> (B, S, D)
        attended, _ = self.self_attention(x, mask=mask, maps=maps)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Three sub-layers (section 3.1), each as LayerNorm(y + Dropout(Sublayer(y))): attention to what was said, to the memory, and FFN."""

    def __init__(self, d_model: int, n_heads: int, d_k: int, d_ff: int, dropout: float, bias: bool, activation: Literal["relu", "swish"]):
        super().__init__()
        self.self_attention = SelfAttention(d_model, n_heads, d_k, bias)
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.memory_attention = MemoryAttention(d_model, n_heads, d_k, bias)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.norm3 = nn.LayerNorm(d_model, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, memory: Tensor, mask: Tensor, past: Tensor | None = None, maps: Maps = None) -> tuple[Tensor, Tensor]:
        """(B, T, D), memory (B, S, h d_k + D) -> (B, T, D), and the keys and values (B, t + T, h d_k + D) of all tokens so far.

        Without `past` y is a whole target; with it y is one token, which sees itself and all before it.
        """
        # Padding of the target is at its end, so that causality alone keeps every real token from seeing it.
        attended, said = self.self_attention(y, past, causal=past is None, maps=maps)
        y = self.norm1(y + self.dropout(attended))
        y = self.norm2(y + self.dropout(self.memory_attention(y, memory, mask=mask, maps=maps)))
        return self.norm3(y + self.dropout(self.feed_forward(y))), said


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i / D)), PE(pos, 2i + 1) = cos of the same (section 3.5): (T,) floats -> (T, D)."""
    i = torch.arange(0, d_model, 2, dtype=positions.dtype, device=positions.device)  # 2i
    angles = positions[:, None] * torch.exp(i * (-math.log(10000) / d_model))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Transformer(nn.Module):
    """Encoder and decoder of figure 1; one matrix embeds source and target and, transposed, gives the logits (section 3.4).

    Args:
        vocab_size: V, of both languages together.
        depth: N, of the encoder and of the decoder.
        n_heads: h.
        d_k: width of a head's queries and keys; None: D / h, as that of its values always is (table 3, rows B).
        dropout: P_drop, of the output of each sub-layer and of the sums of embeddings and positions (section 5.4).
        positions: 'sinusoidal' (section 3.5), 'learned' (table 3, row E), or None, which makes the encoder blind to order.
        max_length: how many positions are learned; sinusoids have no end.
        bias: of the projections in attention and of the logits. The paper has none; nn.Transformer and Marian's models do.
        activation: of the FFN. The paper has 'relu'; Marian's published models 'swish'.
        pad: the token that fills up sources; nothing attends to it.

    Raises:
        ValueError: if heads don't divide D, D is odd with sinusoids, or an argument is out of range.
    """

    def __init__(
        self,
        vocab_size: int = 37_000,
        depth: int = 6,
        d_model: int = 512,
        d_ff: int = 2048,
        n_heads: int = 8,
        d_k: int | None = None,
        dropout: float = 0.1,
        positions: Literal["sinusoidal", "learned"] | None = "sinusoidal",
        max_length: int = 1024,
        bias: bool = False,
        activation: Literal["relu", "swish"] = "relu",
        pad: int = 0,
    ):
        super().__init__()
        sizes = {"vocab_size": vocab_size, "depth": depth, "d_model": d_model, "d_ff": d_ff, "n_heads": n_heads, "max_length": max_length}
        for name, value in (sizes if d_k is None else {**sizes, "d_k": d_k}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} does not divide into n_heads {n_heads} heads of equal width")
        if positions not in ("sinusoidal", "learned", None):
            raise ValueError(f"unknown positions {positions!r}: use 'sinusoidal', 'learned' or None")
        if positions == "sinusoidal" and d_model % 2:
            raise ValueError(f"sinusoids come in pairs of sine and cosine, so that d_model must be even, not {d_model}: or use positions='learned'")
        if activation not in ("relu", "swish"):
            raise ValueError(f"unknown activation {activation!r}: use 'relu' or 'swish'")
        if not 0 <= pad < vocab_size:
            raise ValueError(f"pad {pad} is not a token of a vocabulary of {vocab_size}")
        self.d_model, self.positions, self.pad = d_model, positions, pad
        self.keys = n_heads * (d_k or d_model // n_heads)  # h d_k
        layer = (d_model, n_heads, self.keys // n_heads, d_ff, dropout, bias, activation)
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.position_table = nn.Parameter(torch.empty(max_length, d_model)) if positions == "learned" else None
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(depth))
        self.memory_kv = nn.Linear(d_model, depth * (self.keys + d_model), bias)  # W^K, W^V of attention to the memory, layer by layer
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(depth))
        self.output_bias = nn.Parameter(torch.empty(vocab_size)) if bias else None
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper says nothing. Embeddings N(0, 1/D), so that times sqrt(D) they have variance 1 and the tied logits, too, as in the
        authors' code (github.com/tensorflow/tensor2tensor); W^Q, W^K, W^V and all other matrices Xavier-uniform, biases 0.
        """
        nn.init.normal_(self.embedding.weight, std=self.d_model**-0.5)
        if self.position_table is not None:
            nn.init.normal_(self.position_table, std=self.d_model**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        stacked = [layer.self_attention.qkv for layer in (*self.encoder, *self.decoder)], [self.memory_kv]
        for linears, rows in zip(stacked, ([self.keys, self.keys, self.d_model], [self.keys, self.d_model] * len(self.decoder))):
            for matrix in (matrix for linear in linears for matrix in linear.weight.split(rows)):
                nn.init.xavier_uniform_(matrix)
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Embeddings times sqrt(D) (section 3.4) plus positions (section 3.5): (B, T) -> (B, T, D); `first` is the position of token 0.

        Raises:
            ValueError: if there are more tokens than learned positions.
        """
        x = self.embedding(tokens) * math.sqrt(self.d_model)
        end = first + tokens.shape[1]
        if self.position_table is not None:
            if end > len(self.position_table):
                raise ValueError(f"{end} tokens are more than the {len(self.position_table)} learned positions: cut them, or raise max_length")
            x = x + self.position_table[first:end]
        elif self.positions == "sinusoidal":
            places = torch.arange(first, end, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)  # bf16 ends at 256
            x = x + sinusoids(places, self.d_model).to(x.dtype)
        return self.dropout(x)

    def encode(self, source: Tensor, maps: Maps = None) -> tuple[Tensor, Tensor]:
        """(B, S) -> memory (B, S, D), and the mask (B, 1, 1, S), true at what is not padding."""
        mask = (source != self.pad)[:, None, None]
        x = self.embed(source)
        for layer in self.encoder:
            x = layer(x, mask, maps)
        return x, mask

    def start(self, source: Tensor, maps: Maps = None) -> tuple[Tensors, Tensors]:
        """Reads the source, (B, S), before the first token is said.

        Returns:
            memory {"kv" (B, S, N (h d_k + D)), "mask" (B, 1, 1, S)}, which decoding reads only; and an empty cache, for each layer the
            keys and values (B, t, h d_k + D) of the t tokens so far. Items first: both can be repeated and reordered item by item.

        Raises:
            ValueError: if the source is not (B, S) with S at least 1.
        """
        _check_tokens("source", source)
        memory, mask = self.encode(source, maps)
        kv = self.memory_kv(memory)
        return {"kv": kv, "mask": mask}, {f"layer{n}": kv[:, :0, : self.keys + self.d_model] for n in range(len(self.decoder))}

    def decode(self, target: Tensor, memory: Tensors, cache: Tensors | None = None, maps: Maps = None) -> tuple[Tensor, Tensors]:
        """The output of the last decoder layer, and the new cache: (B, T) -> (B, T, D). With a cache T is 1."""
        y = self.embed(target, 0 if cache is None else cache["layer0"].shape[1])
        kv, said = memory["kv"].chunk(len(self.decoder), -1), {}
        for n, layer in enumerate(self.decoder):
            past = None if cache is None else cache[f"layer{n}"]
            y, said[f"layer{n}"] = layer(y, kv[n], memory["mask"], past, maps)
        return y, said

    def logits(self, y: Tensor) -> Tensor:  # (..., D) -> (..., V)
        return F.linear(y, self.embedding.weight, self.output_bias)

    def step(self, tokens: Tensor, memory: Tensors, cache: Tensors) -> tuple[Tensor, Tensors]:
        """One more token of each of n hypotheses, (n,) -> logits (n, V) of the one after it, and the cache to go on from."""
        y, cache = self.decode(tokens[:, None], memory, cache)
        return self.logits(y[:, 0]), cache

    def forward_features(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> (B, T, D), what the logits are made of.

        Raises:
            ValueError: if source and target are not (B, S) and (B, T) with a token at least.
        """
        _check_tokens("target", target)
        if len(source) != len(target):
            raise ValueError(f"{len(source)} sources do not go with {len(target)} targets: give as many of one as of the other")
        memory, _ = self.start(source)
        return self.decode(target, memory)[0]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> logits (B, T, V): those at t are of the token after target[:, t], which they have seen, and nothing beyond.

        The target begins with the token that begins a sentence. Padding: anywhere in the source, at the end of the target.
        """
        return self.logits(self.forward_features(source, target))

    def attention_maps(self, source: Tensor, target: Tensor) -> Tensors:
        """Who attends to what: (B, S), (B, T) -> {"encoder" (B, N, h, S, S), "decoder" (B, N, h, T, T), "memory" (B, N, h, T, S)}.

        Rows add up to 1. Takes memory for all of them, unlike `forward`.
        """
        encoder: list[Tensor] = []
        decoder: list[Tensor] = []  # of each layer to the tokens so far, then to the memory
        memory, _ = self.start(source, encoder)
        self.decode(target, memory, maps=decoder)
        return {"encoder": torch.stack(encoder, 1), "decoder": torch.stack(decoder[::2], 1), "memory": torch.stack(decoder[1::2], 1)}


def _check_tokens(name: str, tokens: Tensor) -> None:
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"{name} must be (batch, tokens) with at least one token, not {tuple(tokens.shape)}")


# Table 3. Parameters at 37,000 tokens: 63.0M and 214.2M; the paper prints 65M and 213M.
def transformer_base(**kwargs) -> Transformer:
    return Transformer(**kwargs)


def transformer_big(dropout: float = 0.3, **kwargs) -> Transformer:
    """`dropout` is 0.1 for English to French (section 6.1)."""
    return Transformer(d_model=1024, d_ff=4096, n_heads=16, dropout=dropout, **kwargs)


# Not in the paper: for some 30,000 short sentences, and for a quick look on a CPU.
def transformer_small(vocab_size: int = 8000, dropout: float = 0.3, **kwargs) -> Transformer:
    return Transformer(vocab_size, depth=3, d_model=256, d_ff=1024, n_heads=4, dropout=dropout, **kwargs)


def transformer_tiny(vocab_size: int = 259, dropout: float = 0.1, **kwargs) -> Transformer:
    return Transformer(vocab_size, depth=2, d_model=64, d_ff=256, n_heads=4, dropout=dropout, **kwargs)
