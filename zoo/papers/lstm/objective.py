"""The adding problem as a training objective (Hochreiter and Schmidhuber 1997, experiment 4)."""

import torch
from torch import Tensor, nn


class AddingProblem(nn.Module):
    """Regression at the last step of each sequence: E = 1/2 (d - y(T))^2 (1997, appendix A.1).

    batch: {"inputs" (B, T, 2), "target" (B,), "length" (B,)}; steps after a sequence's length are padding.

    Args:
        model: (B, T, 2) -> ((B, T, 1), state).
        tolerance: a sequence is processed correctly if |d - y(T)| < tolerance; the paper's 0.04 is for targets in [0, 1].
    """

    def __init__(self, model: nn.Module, tolerance: float = 0.04):
        super().__init__()
        self.model = model
        self.tolerance = tolerance

    def errors(self, batch: dict[str, Tensor]) -> Tensor:  # -> (B,)
        outputs, _ = self.model(batch["inputs"])
        last = outputs[torch.arange(len(outputs), device=outputs.device), batch["length"] - 1, 0]
        return last - batch["target"]

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        errors = self.errors(batch)
        squared = errors.square().sum()
        return {"loss": squared / 2}, {"mse": squared.detach(), "correct": (errors.detach().abs() < self.tolerance).sum()}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        errors = self.errors(batch).double()
        correct = (errors.abs() < self.tolerance).double().sum()
        return {"squared": errors.square().sum(), "correct": correct, "items": errors.new_tensor(len(errors))}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`mse`, and `accuracy`: percent of sequences within the tolerance."""
        return {"mse": statistics["squared"] / statistics["items"], "accuracy": 100 * statistics["correct"] / statistics["items"]}
