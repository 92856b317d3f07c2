"""Sequence to sequence: translation and whatever else maps one sequence of tokens to another."""

import math

import torch
from torch import Tensor, nn

from .beam_search import BOS, EOS, PAD, beam_search


class SequenceToSequence(nn.Module):
    """loss = sum_t H(q_t, p_t), p_t = p(. | source, y_1..t-1), over the tokens y_t of the targets that are not PAD (teacher forcing).

    q_t is label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7) as Vaswani et al. (2017), section 5.4, use it: 1 - e on y_t,
    e spread evenly over the other tokens of the vocabulary but PAD. With V tokens,

        H(q, p) = (1 - e) (-log p(y)) + e / (V - 2) sum_{k != y, PAD} (-log p(k)).

    A batch is {"source" (B, S): x_1 .. x_n EOS PAD ..., "target" (B, T + 1): BOS y_1 .. y_n EOS PAD ...}; PAD, BOS, EOS are 0, 1, 2.

    Args:
        model: (source (B, S), the decoder's input (B, T), BOS first) -> logits (B, T, V); and `start` and `step`, see `beam_search`.
        smoothing: e, in training only; what is logged and evaluated is -log p(y).

    Raises:
        ValueError: if smoothing is not in [0, 1), or source and target are not of these shapes.
    """

    turns = ("model",)
    forward_methods = ("start", "step")

    def __init__(self, model: nn.Module, smoothing: float = 0.0):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), not {smoothing}")
        self.model = model
        self.smoothing = smoothing

    def logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the tokens y (B, T) that they should have foretold."""
        source, target = batch["source"], batch["target"]
        if source.ndim != 2 or target.ndim != 2 or len(source) != len(target) or target.shape[1] < 2:
            raise ValueError(f"source must be (B, S) and target (B, T + 1), BOS first, not {tuple(source.shape)} and {tuple(target.shape)}")
        return self.model(source, target[:, :-1]), target[:, 1:]

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits, y = self.logits(batch)
        log_p = log_probabilities(logits)
        nats = -log_p.gather(2, y[..., None])[..., 0].masked_fill(y == PAD, 0)  # (B, T)
        loss = nats.sum()
        if self.smoothing:
            words = -log_p[..., PAD + 1 :].sum(-1).masked_fill(y == PAD, 0)  # PAD is the first token
            loss = (1 - self.smoothing) * loss + self.smoothing / (log_p.shape[-1] - 2) * (words - nats).sum()
        return {"loss": loss}, {"nats_per_token": nats.detach().sum()}

    def count(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        tokens = (batch["target"][:, 1:] != PAD).sum()
        return {"loss": tokens, "nats_per_token": tokens}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the tokens that are not PAD: nats, tokens, correct (y_t is the likeliest token); over the sequences: exact (all are)."""
        logits, y = self.logits(batch)
        counts = y != PAD
        nats = -log_probabilities(logits).gather(2, y[..., None])[..., 0].masked_fill(~counts, 0)
        correct = (logits.argmax(-1) == y) & counts
        exact = (correct == counts).all(1)
        statistics = {"nats": nats, "tokens": counts, "correct": correct, "exact": exact, "sequences": torch.ones_like(exact)}
        return {name: value.double().sum() for name, value in statistics.items()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`loss` (nats a token), `perplexity` = e^loss; in percent `token_accuracy` and `teacher_forced_exact`, the share of sequences in
        which every token is foretold right from the right ones before it: those that greedy decoding gets right."""
        loss = statistics["nats"] / statistics["tokens"]
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,  # beyond 709, math.exp raises
            "token_accuracy": 100 * statistics["correct"] / statistics["tokens"],
            "teacher_forced_exact": 100 * statistics["exact"] / statistics["sequences"],
        }

    def translate(self, source: Tensor, beam: int = 4, alpha: float = 0.6, extra: int = 50) -> Tensor:
        """(B, S) -> (B, L) int64, y_1 .. y_m EOS PAD ...: what `beam_search` finds. Call it in evaluation mode."""
        return beam_search(self.model, source, beam, alpha, extra)[0]

    def check(self, facts: dict[str, int]) -> None:
        """Tries the data's last token. ValueError where the model doesn't know it, or tells another number of tokens apart."""
        if "vocab_size" not in facts:
            return
        size, device, training = facts["vocab_size"], next(self.model.parameters()).device, self.model.training
        source, target = (torch.tensor([row], device=device) for row in ([size - 1, EOS], [BOS, size - 1]))
        try:
            with torch.no_grad():
                found = self.model.eval()(source, target).shape
        except (IndexError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"the model does not take the data's tokens, 0 to {size - 1}, ({said}): set model.vocab_size={size}") from error
        finally:
            self.model.train(training)
        if found != (1, 2, size):
            raise ValueError(f"the model's logits for 1 x 2 tokens are {tuple(found)} and the data has {size} tokens: set model.vocab_size={size}")


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax, in float32 at least: a sum over a batch needs more than bf16 has."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
