"""Beam search for encoder-decoder models: all sentences of a batch side by side.

B sentences, K hypotheses of each (the beam), N = B K rows, V tokens, L tokens of the longest translation.
"""

import math

import torch
from torch import Tensor, nn

PAD, BOS, EOS = 0, 1, 2  # of zoo.data.pairs; all other tokens are words
FIRST_WORD = 3


def length_penalty(length: int | Tensor, alpha: float) -> float | Tensor:
    """lp(Y) = ((5 + |Y|) / 6)^alpha (Wu et al. 2016, arXiv:1609.08144, equation 14); EOS counts as a token of Y."""
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(model: nn.Module, source: Tensor, beam: int = 4, alpha: float = 0.6, extra: int = 50) -> tuple[Tensor, Tensor]:
    """Looks for the translation Y of the largest score log P(Y | X) / lp(Y) (Vaswani et al. 2017, section 6.1).

    Every step extends the K live hypotheses of a sentence by all tokens. Of the extensions, the K best that don't end live on, so that the
    beam never shrinks. One that ends in EOS is a result if it is among the K best of all extensions; the best result so far is kept.
    At the last position every hypothesis must end. So K = 1 is greedy decoding, and ends with its first result, whatever alpha.

    A sentence is done as soon as no live hypothesis can become better than its best result. Let s <= 0 be the log-probability of the best
    live one: whatever follows, it will not rise, and lp grows with the length, up to `limit`; so no score above s / lp(limit) is ahead.
    Stopping there changes no translation. That rule and the beam that doesn't shrink are those of the authors' tensor2tensor, where an
    ending need only be among the 2 K best extensions and a hypothesis cut off at the limit is a result if there is no other.

    Args:
        model: `start(source) -> (memory, cache)`, two dicts of tensors, items first: B rows here, N rows, those of a sentence side by side,
            from then on. `step(tokens (N,), memory, cache) -> (logits (N, V), cache)` reads one token more. In evaluation mode, or dropout
            disturbs the search.
        source: (B, S) int64, x_1 .. x_n EOS PAD ...
        extra: a translation has at most as many tokens as its source and `extra` more (EOS counts on both sides).

    Returns:
        tokens (B, L), y_1 .. y_m EOS PAD ..., without BOS or PAD among the y, and their scores (B,); with K = 1, log P(Y | X).

    Raises:
        ValueError: for a source that isn't (B, S) or has a row of nothing but PAD, beam < 1, alpha < 0 (for which the bound would not
            hold), or extra < 0.
    """
    _check(source, beam, alpha, extra)
    alpha = alpha if beam > 1 else 0.0  # with one hypothesis lengths are not weighed, and the bound holds with the first result
    sentences, longest = len(source), source.shape[1] + extra
    place = torch.arange(sentences, device=source.device)  # the sentence that each group of K rows belongs to
    limit = (source != PAD).sum(1) + extra
    memory, cache = (_rows(part, place.repeat_interleave(beam)) for part in model.start(source))
    logits, cache = model.step(torch.full_like(place, BOS).repeat_interleave(beam), memory, cache)

    dtype = torch.promote_types(logits.dtype, torch.float32)
    score = torch.full((sentences, beam), -math.inf, dtype=dtype, device=source.device)  # log P of the live hypotheses, best first
    score[:, 0] = 0  # one at the start, the empty one
    words = source.new_full((sentences, beam, longest), PAD)
    best, best_score = source.new_full((sentences, longest), PAD), score.new_full((sentences,), -math.inf)

    for length in range(1, longest + 1):
        extended = score[..., None] + logits.log_softmax(-1, dtype=dtype).unflatten(0, (-1, beam))  # (B, K, V)
        ending = extended[..., EOS].clone()  # (B, K)
        extended[..., :FIRST_WORD] = -math.inf
        score, index = extended.flatten(1).topk(beam)  # (B, K)
        parent, token = index // extended.shape[-1], index % extended.shape[-1]

        # Results
        worst = torch.cat([score, ending], 1).topk(beam).values[:, -1:]  # the K-th best of all extensions
        counts = (ending >= worst) | (limit == length)[:, None]
        value, which = (ending / length_penalty(length, alpha)).masked_fill(~counts, -math.inf).max(1)
        ended = words.gather(1, which[:, None, None].expand(-1, 1, longest))[:, 0]  # (B, L)
        ended[:, length - 1] = EOS
        better = value > best_score[place]
        best[place] = torch.where(better[:, None], ended, best[place])
        best_score[place] = torch.where(better, value, best_score[place])

        # What lives on
        words = words.gather(1, parent[..., None].expand(-1, -1, longest))
        words[..., length - 1] = token
        going = (limit > length) & (score[:, 0] / length_penalty(limit, alpha) > best_score[place])
        left = going.nonzero()[:, 0]  # the one time in a step that a GPU is waited for
        if len(left) == 0:
            break
        rows = torch.arange(len(place), device=place.device)[:, None] * beam + parent  # (B, K): which row each goes on from
        if len(left) < len(place):  # sentences that are done leave the batch
            memory = _rows(memory, (left[:, None] * beam + torch.arange(beam, device=left.device)).flatten())
            rows, place, limit, score, words, token = (each[left] for each in (rows, place, limit, score, words, token))
        logits, cache = model.step(token.flatten(), memory, _rows(cache, rows.flatten()))

    return best[:, : int((best != PAD).any(0).sum())], best_score


def _rows(tensors: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: value.index_select(0, index) for name, value in tensors.items()}


def _check(source: Tensor, beam: int, alpha: float, extra: int) -> None:
    if source.ndim != 2 or not (source != PAD).any(1).all():
        raise ValueError(f"source must be (B, S) with an EOS at least in each row, not of shape {tuple(source.shape)} or with a row of padding")
    if beam < 1 or alpha < 0 or extra < 0:
        raise ValueError(f"beam must be at least 1, alpha and extra not below 0: not {beam}, {alpha} and {extra}")
