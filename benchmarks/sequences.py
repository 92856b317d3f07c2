"""Cases of text: batches of tokens instead of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case


@dataclass(frozen=True)
class Translating(Case):
    """An encoder-decoder on `batch` sentences of `size` tokens and their translations; the last tokens of some sources are padding."""

    vocab_size: int = 8000

    def fresh(self, device: torch.device) -> Batch:
        source, target = (torch.randint(3, self.vocab_size, (self.batch, length), device=device) for length in (self.size, self.size + 1))
        source[: self.batch // 4, -2:] = 0
        return source, target

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        return lambda source, target: F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1).float(), target[:, 1:].flatten())

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        return lambda source, target: model(source, target[:, :-1])


@dataclass(frozen=True)
class Reading(Case):
    """A recurrent language model on `batch` windows of `size` tokens."""

    vocab_size: int = 10_000

    def fresh(self, device: torch.device) -> Batch:
        return (torch.randint(self.vocab_size, (self.batch, self.size + 1), device=device),)

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        return lambda tokens: F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1).float(), tokens[:, 1:].flatten())

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        return lambda tokens: model(tokens[:, :-1])


@dataclass(frozen=True)
class Continuing(Case):
    """A decoder that has no state: on `batch` windows of `size` tokens, and 64 greedy tokens more for the first 16."""

    vocab_size: int = 2048
    works = ("step", "generation")

    def fresh(self, device: torch.device) -> Batch:
        return (torch.randint(self.vocab_size, (self.batch, self.size + 1), device=device),)

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        return lambda tokens: F.cross_entropy(_logits(model(tokens[:, :-1])).flatten(0, 1).float(), tokens[:, 1:].flatten())

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        if type(model).__module__.startswith("zoo."):
            from zoo.objectives import CausalLanguageModel

            greedy = CausalLanguageModel(model)
            return lambda tokens: greedy.sample(len(tokens), torch.Generator(tokens.device), length=64, top_k=1, prompt=tokens[:, :16])
        return lambda tokens: model.generate(tokens[:, :16], attention_mask=torch.ones_like(tokens[:, :16]), min_new_tokens=64, max_new_tokens=64,
                                             do_sample=False, pad_token_id=0)  # fmt: skip


def _logits(out: object) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def transformers_gpt2() -> nn.Module:
    """With transformers' scaled dot-product attention."""
    import transformers

    config = transformers.GPT2Config(vocab_size=2048, n_positions=256, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                                     attn_pdrop=0.0, attn_implementation="sdpa")  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


class TorchTransformer(nn.Module):
    """nn.Transformer as its users complete it: embeddings, sinusoids, masks, tied logits. Dropout where the paper has it, and nowhere else."""

    def __init__(self, vocab_size: int, d_model: int, n_heads: int, depth: int, d_ff: int, dropout: float, longest: int = 512):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocab_size, d_model), nn.Dropout(dropout)
        self.transformer = nn.Transformer(d_model, n_heads, depth, depth, d_ff, dropout, batch_first=True)
        for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
            layer.dropout.p = layer.self_attn.dropout = 0.0
        for layer in self.transformer.decoder.layers:
            layer.multihead_attn.dropout = 0.0
        angles = torch.arange(longest)[:, None] * torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000) / d_model))
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1), persistent=False)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + self.positions[: tokens.shape[1]])

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        padding, causal = source == 0, nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        out = self.transformer(self.embed(source), self.embed(target), tgt_mask=causal, tgt_is_causal=True,
                               src_key_padding_mask=padding, memory_key_padding_mask=padding)  # fmt: skip
        return out @ self.embedding.weight.T


class TorchLanguageModel(nn.Module):
    """nn.LSTM between an embedding and a linear layer, dropout between them."""

    def __init__(self, vocab_size: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocab_size, hidden), nn.Dropout(dropout)
        self.lstm = nn.LSTM(hidden, hidden, layers, dropout=dropout, batch_first=True)
        self.out = nn.Linear(hidden, vocab_size)

    def forward(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(self.dropout(self.embedding(tokens)))
        return self.out(self.dropout(y)), state


def _our_gpt2() -> nn.Module:
    from zoo.papers.gpt_2 import GPT2

    return GPT2(2048, context=256, depth=4, d_model=256, n_heads=4, dropout=0.0)


def _ours(preset: str, **options) -> Callable[[], nn.Module]:
    import zoo

    return lambda: zoo.create_model(preset, **options)


CASES = {
    "transformer_small": Translating(
        _ours("transformer_small", dropout=0.1),
        {"nn.Transformer": lambda: TorchTransformer(8000, 256, 4, 3, 1024, 0.1)}, 32, "adam", False, 24,
    ),
    "zaremba_medium": Reading(
        _ours("zaremba_medium"), {"nn.LSTM": lambda: TorchLanguageModel(10_000, 650, 2, 0.5)}, 20, "sgd", False, 35,
    ),
    "gpt2_4x256": Continuing(_our_gpt2, {"transformers": transformers_gpt2}, 8, "adamw", False, 128),
}  # fmt: skip
