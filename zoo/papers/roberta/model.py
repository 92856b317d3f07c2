"""RoBERTa: A Robustly Optimized BERT Pretraining Approach (Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov, 2019,
arXiv:1907.11692).

The network is BERT's (zoo/papers/bert/model.py, whose letters these are) without segments and next sentences; what the paper changes is the training:
more data, larger batches, longer, full sentences, new masks each time, byte pairs.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..bert.model import Embeddings, Layer, Maps, MaskedHead, Output, at, check, initialise

EPS = 1e-5  # of the layer norms, as in the authors' code (github.com/facebookresearch/fairseq)


class SentenceHead(nn.Module):
    """W_2 tanh(W_1 x + b_1) + b_2 of <s>, with dropout before each matrix: (B, T, D) -> (B, K). BERT's pooler is part of it."""

    def __init__(self, d_model: int, outputs: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.linear = nn.Linear(d_model, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(torch.tanh(self.dense(self.dropout(x[:, 0])))))


class Roberta(nn.Module):
    """BERT's encoder for byte pairs, and what is put on top of it:

    | head | output |
    |---|---|
    | None | T_i (B, T, D), the same as `forward_features` |
    | "masked" | logits of the tokens (B, P, V) |
    | "classification" | logits (B, outputs); with one output: regression |
    | "spans" | logits (B, T, 2) of a span's first and of its last token |
    | "tagging" | logits (B, T, outputs) |

    Args:
        max_length: the most tokens that can be read. Positions count from pad + 1, so that their table has max_length + pad + 1 rows.
        pad: the token that fills up texts: it takes no position of its own.
        eps: of the layer norms.
        outputs: K, of the heads that say so.

    Raises:
        ValueError: if heads don't divide D, or an argument is out of range.
    """

    def __init__(
        self,
        vocab_size: int = 50_265,
        depth: int = 12,
        d_model: int = 768,
        n_heads: int = 12,
        d_ff: int = 3072,
        max_length: int = 512,
        dropout: float = 0.1,
        pad: int = 1,
        eps: float = EPS,
        head: Literal["masked", "classification", "spans", "tagging"] | None = "masked",
        outputs: int = 2,
    ):
        super().__init__()
        sizes = {"vocab_size": vocab_size, "depth": depth, "d_model": d_model, "n_heads": n_heads, "d_ff": d_ff}
        check(sizes | {"max_length": max_length, "outputs": outputs}, dropout, "erf")
        if not 0 <= pad < vocab_size:
            raise ValueError(f"pad {pad} is not a token of a vocabulary of {vocab_size}")
        heads = {
            "masked": lambda: MaskedHead(vocab_size, d_model, eps=eps),
            "classification": lambda: SentenceHead(d_model, outputs, dropout),
            "spans": lambda: Output(d_model, 2, 0.0),
            "tagging": lambda: Output(d_model, outputs, dropout),
        }
        if head not in (None, *heads):
            raise ValueError(f"unknown head {head!r}: use {', '.join(map(repr, heads))} or None")
        self.vocab_size, self.max_length, self.pad, self.kind = vocab_size, max_length, pad, head
        self.embeddings = Embeddings(vocab_size, max_length + pad + 1, 1, d_model, dropout, eps)
        self.layers = nn.ModuleList(Layer(d_model, n_heads, d_ff, dropout, eps=eps) for _ in range(depth))
        self.head = None if head is None else heads[head]()
        initialise(self)  # Departure: cut off at twice the standard deviation, as BERT's; fairseq's normal is not

    def forward_features(self, tokens: Tensor, segments: Tensor | None = None, attend: Tensor | None = None, maps: Maps = None) -> Tensor:
        """T_i of every token, (B, T, D).

        Args:
            tokens: (B, T) int64, <s> first.
            segments: not used: two texts are told apart by what stands between them.
            attend: (B, T) bool, false at padding, which nothing attends to.
            maps: a list that gets each layer's attention weights (B, h, T, T).

        Raises:
            ValueError: if there are more tokens than positions.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens are more than the {self.max_length} positions of the model: cut the texts, or raise max_length")
        words = tokens != self.pad
        x = self.embeddings(tokens, positions=self.pad + words.cumsum(1) * words)
        mask = None if attend is None else attend[:, None, None]
        for layer in self.layers:
            x = layer(x, mask, maps)
        return x

    def forward(self, tokens: Tensor, segments: Tensor | None = None, attend: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """What the head makes of the text, see above.

        Args:
            tokens, segments, attend: see `forward_features`.
            places: (B, P) int64, where "masked" shall predict the token; everywhere without it.
        """
        x = self.forward_features(tokens, segments, attend)
        if self.kind == "masked":
            return self.head(at(x, places), self.embeddings.word.weight)
        return x if self.head is None else self.head(x)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights in the names of transformers become ours, so that `init` takes such a folder, too."""
        from .convert import from_transformers

        return from_transformers(state) if any("word_embeddings" in name for name in state) else state


# Section 5. Parameters with the head "masked": 124.7M, 355.4M.
def roberta_base(**kwargs) -> Roberta:
    return Roberta(**kwargs)


def roberta_large(**kwargs) -> Roberta:
    return Roberta(depth=24, d_model=1024, n_heads=16, d_ff=4096, **kwargs)
