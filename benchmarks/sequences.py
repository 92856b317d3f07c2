"""Cases of text: batches of tokens instead of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case, is_ours, ours


@dataclass(frozen=True)
class Translating(Case):
    """An encoder-decoder on `batch` sentences of `size` tokens and their translations; where `padded`, a quarter of the sources ends in padding."""

    vocab_size: int = 8000
    padded: bool = True

    def fresh(self, device: torch.device) -> Batch:
        source, target = (torch.randint(3, self.vocab_size, (self.batch, length), device=device) for length in (self.size, self.size + 1))
        if self.padded:
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
        if is_ours(model):
            from zoo.objectives import CausalLanguageModel

            greedy = CausalLanguageModel(model)
            return lambda tokens: greedy.sample(len(tokens), torch.Generator(tokens.device), length=64, temperature=0, prompt=tokens[:, :16])
        return lambda tokens: model.generate(tokens[:, :16], attention_mask=torch.ones_like(tokens[:, :16]), max_new_tokens=64,
                                             do_sample=False, pad_token_id=0)[:, 16:]  # fmt: skip


@dataclass(frozen=True)
class Pretraining(Case):
    """BERT on `batch` pairs of sentences, `size` tokens each, 15 % of which are hidden: both losses, and the encoder alone. Some end in padding."""

    vocab_size: int = 8192

    def fresh(self, device: torch.device) -> Batch:
        """Tokens, segments, attend (B, T); hidden places and what is there (B, P); whether the second sentence follows (B,)."""
        tokens = torch.randint(5, self.vocab_size, (self.batch, self.size), device=device)
        segments = (torch.arange(self.size, device=device) >= self.size // 2).long().expand_as(tokens)
        attend = torch.ones_like(tokens, dtype=torch.bool)
        attend[: self.batch // 4, -2:] = False
        places = torch.rand(self.batch, self.size - 2, device=device).topk(round(0.15 * self.size)).indices
        return tokens, segments, attend, places, tokens.gather(1, places), torch.randint(2, (self.batch,), device=device)

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        def where_hidden(tokens, segments, attend, places, targets, follows):
            logits, following = model(tokens, segments, attend, places)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()) + F.cross_entropy(following.float(), follows)

        def everywhere(tokens, segments, attend, places, targets, follows):
            labels = torch.full_like(tokens, -100).scatter(1, places, targets)
            return model(tokens, attend, segments, labels=labels, next_sentence_label=follows).loss

        return where_hidden if is_ours(model) or isinstance(model, HiddenPlaces) else everywhere

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        if is_ours(model):
            return lambda tokens, segments, attend, *_: model.pool(model.forward_features(tokens, segments, attend))
        encoder = (model.model if isinstance(model, HiddenPlaces) else model).bert
        return lambda tokens, segments, attend, *_: encoder(tokens, attend, segments)


class HiddenPlaces(nn.Module):
    """transformers' BertForPreTraining with logits at the hidden places only, as the authors' code and ours have them: the arithmetic of ours.

    By itself it has logits of all tokens, most of which the loss ignores.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, segments: Tensor, attend: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        x, pooled = self.model.bert(tokens, attend, segments, return_dict=False)
        return self.model.cls(x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])), pooled)


def transformers_bert() -> nn.Module:
    """With transformers' scaled dot-product attention; dropout 0.1 everywhere, as in ours."""
    import transformers

    config = transformers.BertConfig(vocab_size=8192, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
                                     max_position_embeddings=128, attn_implementation="sdpa")  # fmt: skip
    return transformers.BertForPreTraining(config)


def _logits(out: object) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def transformers_gpt2() -> nn.Module:
    """With transformers' scaled dot-product attention."""
    import transformers

    config = transformers.GPT2Config(vocab_size=2048, n_positions=256, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                                     attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa")  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


class TorchTransformer(nn.Module):
    """nn.Transformer as its users complete it: embeddings, sinusoids, masks, tied logits. Dropout where the paper has it, and nowhere else.

    Args:
        padded: whether it is told where padding is. Its fused inference is then off under autocast, where it would raise.
    """

    def __init__(self, vocab_size: int, d_model: int, n_heads: int, depth: int, d_ff: int, dropout: float, padded: bool, longest: int = 512):
        super().__init__()
        self.padded = padded
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
        padding = source == 0 if self.padded else None
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        fused, fails = torch.backends.mha.get_fastpath_enabled(), self.padded and torch.is_autocast_enabled(source.device.type)
        torch.backends.mha.set_fastpath_enabled(fused and not fails)
        try:
            out = self.transformer(self.embed(source), self.embed(target), tgt_mask=causal, tgt_is_causal=True,
                                   src_key_padding_mask=padding, memory_key_padding_mask=padding)  # fmt: skip
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
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


CASES = {
    "transformer_small": Translating(
        ours("transformer_small", dropout=0.1),
        {"nn.Transformer": lambda: TorchTransformer(8000, 256, 4, 3, 1024, 0.1, padded=True)}, 32, "adam", False, 24,
    ),
    "transformer_base": Translating(
        ours("transformer_base", vocab_size=8000, dropout=0.1),
        {"nn.Transformer": lambda: TorchTransformer(8000, 512, 8, 6, 2048, 0.1, padded=False)}, 8, "adam", False, 64, padded=False,
    ),
    "zaremba_medium": Reading(
        ours("zaremba_medium"), {"nn.LSTM": lambda: TorchLanguageModel(10_000, 650, 2, 0.5)}, 20, "sgd", False, 35,
    ),
    "bert_mini": Pretraining(
        ours("bert_mini", vocab_size=8192, max_length=128, head="pretraining"),
        {"transformers": lambda: HiddenPlaces(transformers_bert()), "transformers (all places)": transformers_bert}, 8, "adamw", False, 128,
    ),
    "gpt2_4x256": Continuing(_our_gpt2, {"transformers": transformers_gpt2}, 8, "adamw", False, 128),
}  # fmt: skip
