"""Language modelling with recurrent models, whose state is carried from one window of the text to the next."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that doesn't count: padding

Carry = dict[str, Tensor]


class LanguageModel(nn.Module):
    """loss = sum_t -log p(target_t | tokens_1..t), over windows of B parallel texts.

    batch: {"tokens" (B, T), "targets" (B, T), "reset" (B,)}; where `reset` is true a new text begins, and the carried state is zeroed.

    Args:
        model: forward(tokens, carry) -> (logits (B, T, V), carry), and initial_carry(B); a carry is a dict of tensors, items first.
        reduction: what the summed loss is divided by. `token`: the mean over tokens. `sequence`: the sum over time, the mean over the
            batch; the learning rate and the clipping of Zaremba et al. (2014) are meant for it.
        unit: what a token is, in the name of the metric: `bits_per_char`.

    Raises:
        ValueError: if tokens and targets differ in shape, or `reset` is not one value a sequence.
    """

    def __init__(
        self, model: nn.Module, reduction: Literal["token", "sequence"] = "token", unit: Literal["token", "char", "word"] = "token"
    ):
        super().__init__()
        if reduction not in ("token", "sequence"):
            raise ValueError(f"reduction must be token or sequence, not {reduction!r}")
        if unit not in ("token", "char", "word"):
            raise ValueError(f"unit must be token, char or word, not {unit!r}")
        self.model = model
        self.reduction = reduction
        self.unit = unit

    def initial_carry(self, batch_size: int) -> Carry:
        return self.model.initial_carry(batch_size)

    def negative_log_likelihoods(self, batch: dict[str, Tensor], carry: Carry) -> tuple[Tensor, Carry]:
        """Nats for each token, (B * T,), 0 where it is ignored; and the carry to go on from."""
        tokens, targets, reset = batch["tokens"], batch["targets"], batch["reset"]
        if tokens.shape != targets.shape:
            raise ValueError(f"targets must have the shape of tokens {tuple(tokens.shape)}, not {tuple(targets.shape)}")
        if reset.shape != tokens.shape[:1]:
            raise ValueError(f"reset must be one value for each of the {len(tokens)} sequences, not of shape {tuple(reset.shape)}")
        carry = {name: value.masked_fill(reset.view(-1, *[1] * (value.ndim - 1)), 0) for name, value in carry.items()}
        logits, carry = self.model(tokens, carry)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a sum over a batch needs more than bf16 has
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return nats, {name: value.detach() for name, value in carry.items()}

    def forward(self, batch: dict[str, Tensor], turn: str, carry: Carry) -> tuple[dict[str, Tensor], dict[str, Tensor], Carry]:
        nats, carry = self.negative_log_likelihoods(batch, carry)
        loss = nats.sum()
        return {"loss": loss}, {f"nats_per_{self.unit}": loss.detach()}, carry

    def count(self, batch: dict[str, Tensor], turn: str) -> dict[str, int | Tensor]:
        tokens = (batch["targets"] != IGNORED).sum()
        return {"loss": tokens if self.reduction == "token" else len(batch["targets"]), f"nats_per_{self.unit}": tokens}

    def evaluate(self, batch: dict[str, Tensor], carry: Carry) -> tuple[dict[str, Tensor], Carry]:
        nats, carry = self.negative_log_likelihoods(batch, carry)
        return {"nats": nats.double().sum(), "tokens": (batch["targets"] != IGNORED).double().sum()}, carry

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`loss` (nats a token), `perplexity` = e^loss, `bits_per_<unit>` = loss / ln 2."""
        loss = statistics["nats"] / statistics["tokens"]
        perplexity = math.exp(loss) if loss < 700 else math.inf  # beyond 709, math.exp raises
        return {"loss": loss, "perplexity": perplexity, f"bits_per_{self.unit}": loss / math.log(2)}

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator, length: int = 100, temperature: float = 1.0, prompt: Tensor | None = None
    ) -> Tensor:
        """n continuations of `length` tokens, (n, length) int64. Call it in eval mode, or dropout disturbs the samples.

        Args:
            generator: draws the tokens; on the model's device.
            temperature: divides the logits; above 0.
            prompt: token ids, (P,) for all or (n, P); not part of the result. Without one the text goes on from a token 0 alone.
        """
        if temperature <= 0 or length < 1:
            raise ValueError(f"temperature must be above 0 and length at least 1, not {temperature} and {length}")
        context = torch.zeros(1, dtype=torch.long) if prompt is None else prompt
        if context.ndim not in (1, 2) or context.shape[-1] == 0 or (context.ndim == 2 and len(context) != n):
            raise ValueError(f"prompt must be (P,) or ({n}, P) with P at least 1, not {tuple(context.shape)}")
        tokens = context.to(generator.device).expand(n, -1)
        carry, drawn = self.initial_carry(n), []
        for _ in range(length):
            logits, carry = self.model(tokens, carry)
            tokens = torch.multinomial((logits[:, -1].float() / temperature).softmax(-1), 1, generator=generator)
            drawn.append(tokens)
        return torch.cat(drawn, dim=1)
