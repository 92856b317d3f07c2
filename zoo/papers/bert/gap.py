"""What is the context on both sides worth? The same gaps, filled from the whole text and from what stands before them: for `evaluation:`.

B texts of a batch, T tokens of each.
"""

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .objective import unmasked


def gap_filling(objective: nn.Module, data: Any, generator: torch.Generator, split: str = "test", batch_size: int = 64) -> dict[str, float]:
    """Hides the middle token of each text of a split, and asks for it.

    A model that reads in both directions is asked twice: with all of the text to see, and with what follows the gap hidden from attention, as if the
    text ended there (in training some texts are as short). A causal one is asked what comes after the tokens before the gap.

    Args:
        objective: whose model is a `Bert` with head "masked" or "pretraining".
        data: of zoo.data.masked.

    Returns:
        gap_nats and gap_accuracy (percent) from both sides, gap_left_nats and gap_left_accuracy from the left one; gaps, how many.
    """
    texts, sums = getattr(data, split), defaultdict(float)
    for address in (address for sweep in texts.sweeps(batch_size) for address in sweep):
        batch = texts.fetch(address)
        whole, attend = unmasked(batch), batch["attend"]
        place = attend.sum(1, keepdim=True) // 2  # (B, 1)
        answer = whole.gather(1, place)[:, 0]
        hidden = whole.scatter(1, place, texts.vocabulary.mask)
        before = attend & (torch.arange(whole.shape[1], device=whole.device) <= place)
        if getattr(objective.model, "causal", False):
            asked = {"gap_left": (whole, attend, place - 1)}
        else:
            asked = {"gap": (hidden, attend, place), "gap_left": (hidden, before, place)}
        counts = ~texts.vocabulary.is_special(answer)  # a [SEP] may stand in the middle
        for side, (tokens, seen, where) in asked.items():
            found = objective.model(tokens, batch["segments"], seen, where)
            logits = _first(found)[:, 0].float()
            sums[f"{side}_nats"] += (F.cross_entropy(logits, answer, reduction="none") * counts).double().sum()
            sums[f"{side}_accuracy"] += 100 * ((logits.argmax(-1) == answer) & counts).double().sum()
        sums["gaps"] += counts.double().sum()
    gaps = float(sums.pop("gaps"))
    return {"gaps": gaps} | {name: float(value) / max(gaps, 1) for name, value in sums.items()}


def _first(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found
