"""The experiments of 1997 and 2000 as training objectives: what is asked for when, and what counts as right.

All minimise E = 1/2 sum_k (d_k - y_k)^2 over the output units k, wherever something is asked for (1997, appendix A.1).
B batch, T time steps, I input units, K output units; d what is asked for, y what the network says.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a symbol that doesn't count: padding

Batch = dict[str, Tensor]
Carry = dict[str, Tensor]
Terms = dict[str, Tensor]


class AnswerAtEnd(nn.Module):
    """Adding, multiplication and temporal order (1997, experiments 4 to 6): the answer is asked for at the last step of a sequence only.

    batch: {"inputs" (B, T, I), "target" (B,) or (B, K), "length" (B,)}; steps after a sequence's length are padding.

    Args:
        model: (B, T, I) -> ((B, T, K), state).
        tolerance: an answer is right if |d_k - y_k| < tolerance for all k: ABS(tolerance) in table 11, where targets lie in [0, 1].

    Raises:
        ValueError: if the model has another number of outputs than the task.
    """

    def __init__(self, model: nn.Module, tolerance: float = 0.04):
        super().__init__()
        self.model = model
        self.tolerance = tolerance

    def errors(self, batch: Batch) -> Tensor:  # -> (B, K), d - y
        outputs, _ = self.model(batch["inputs"])
        y = outputs[torch.arange(len(outputs), device=outputs.device), batch["length"] - 1]
        d = batch["target"].reshape(len(y), -1)
        if d.shape != y.shape:
            raise ValueError(f"the model has {y.shape[1]} outputs and the task asks for {d.shape[1]}: choose the net of the task")
        return d - y

    def right(self, errors: Tensor) -> Tensor:  # (B, K) -> (B,) bool
        return (errors.abs() < self.tolerance).all(-1)

    def forward(self, batch: Batch, turn: str) -> tuple[Terms, Terms]:
        errors = self.errors(batch)
        seen = errors.detach()
        return {"loss": errors.square().sum() / 2}, {"mse": seen.square().mean(-1).sum(), "accuracy": 100.0 * self.right(seen).sum()}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        errors = self.errors(batch).double()
        return {"squared": errors.square().mean(-1).sum(), "right": self.right(errors).double().sum(), "items": errors.new_tensor(len(errors))}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`mse`, and `accuracy`: percent of sequences answered right."""
        return {"mse": statistics["squared"] / statistics["items"], "accuracy": 100 * statistics["right"] / statistics["items"]}


def next_symbol_error(y: Tensor, batch: Batch) -> Tensor:  # (B, T, K) -> ()
    """E summed over time, for the symbol that does come next; 0 after the end."""
    d = F.one_hot(batch["next"].clamp(min=0), y.shape[-1])
    return ((d - y).square().sum(-1) * (batch["next"] != IGNORED)).sum() / 2


def foreseen(y: Tensor, batch: Batch) -> Tensor:  # (B, T, K) -> (B, T) bool
    """Whether the outputs of all symbols that might come next are more active than every other one (1997, section 5.1)."""
    possible = batch["possible"]
    return y.masked_fill(~possible, math.inf).amin(-1) > y.masked_fill(possible, -math.inf).amax(-1)


def sums(right: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Predictions, all and far ones, and how many of them are right (B, T); nothing counts after the end."""
    counted = batch["next"] != IGNORED
    masks = {"symbols": counted, "symbols_right": counted & right, "far": batch["far"], "far_right": batch["far"] & right}
    return {name: mask.sum().double() for name, mask in masks.items()}


def percentages(statistics: dict[str, float]) -> dict[str, float]:
    """`symbol_accuracy`: percent of the predictions that are right. `far_accuracy`: of those that need the second symbol; guesses: 50."""
    return {f"{key}_accuracy": 100 * statistics[f"{name}_right"] / statistics[name] for key, name in (("symbol", "symbols"), ("far", "far"))}


class NextSymbol(nn.Module):
    """Embedded Reber grammar (1997, experiment 1): predict the next symbol at every step. A string is right if all its predictions are.

    batch: {"inputs" (B, T, K) one-hot, "next" (B, T) symbols, -100 after the end of a string, "possible" (B, T, K) bool, the symbols that might
    come next, "far" (B, T) bool, where that depends on the second symbol of the string}.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def strings_right(self, right: Tensor, batch: Batch) -> Tensor:  # (B, T) -> ()
        return (right | (batch["next"] == IGNORED)).all(1).sum()

    def forward(self, batch: Batch, turn: str) -> tuple[Terms, Terms]:
        y, _ = self.model(batch["inputs"])
        return {"loss": next_symbol_error(y, batch)}, {"accuracy": 100.0 * self.strings_right(foreseen(y.detach(), batch), batch)}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        y, _ = self.model(batch["inputs"])
        right = foreseen(y, batch)
        return {**sums(right, batch), "strings_right": self.strings_right(right, batch).double(), "strings": y.new_tensor(len(y)).double()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`accuracy`: percent of strings that are right; the paper's trial is a success at 100. And `percentages`."""
        return {"accuracy": 100 * statistics["strings_right"] / statistics["strings"], **percentages(statistics)}


class ContinualNextSymbol(nn.Module):
    """Continual embedded Reber grammar (2000, section 4): the same in endless streams; the network is never told where a string begins.

    batch: that of NextSymbol, windows of B streams, and {"reset" (B,) bool}, true where a stream begins. The state goes on from window to window.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def initial_carry(self, batch_size: int) -> Carry:
        """The model's state, and how many predictions were wrong since the stream began, (B,)."""
        carry = self.model.initial_carry(batch_size)
        return {**carry, "wrong": next(iter(carry.values())).new_zeros(batch_size)}

    def predictions(self, batch: Batch, carry: Carry) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """y (B, T, K), which are right (B, T), how many were wrong since the stream began (B, T), and the carry to go on from."""
        state = {name: value.masked_fill(batch["reset"].view(-1, *[1] * (value.ndim - 1)), 0) for name, value in carry.items()}
        before = state.pop("wrong")
        # Departure: errors don't flow back over the beginning of a window. In the paper the derivatives of s are carried along for ever.
        y, state = self.model(batch["inputs"], state)
        right = foreseen(y.detach(), batch)
        wrong = before[:, None] + (~right).cumsum(1)
        return y, right, wrong, {**{name: value.detach() for name, value in state.items()}, "wrong": wrong[:, -1]}

    def forward(self, batch: Batch, turn: str, carry: Carry) -> tuple[Terms, Terms, Carry]:
        y, right, _, carry = self.predictions(batch, carry)
        return {"loss": next_symbol_error(y, batch)}, {"symbol_accuracy": 100.0 * right.double().mean(1).sum()}, carry

    def evaluate(self, batch: Batch, carry: Carry) -> tuple[dict[str, Tensor], Carry]:
        flawless = batch["reset"] | (carry["wrong"] == 0)  # streams without an error so far
        _, right, wrong, carry = self.predictions(batch, carry)
        found = {"error_free": (wrong == 0).sum(), "failed": (flawless & (wrong[:, -1] > 0)).sum(), "streams": batch["reset"].sum()}
        return {**sums(right, batch), **{name: value.double() for name, value in found.items()}}, carry

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`error_free`: symbols predicted right before a stream's first error, the mean of the streams; `perfect`: percent of streams without
        any error. And `percentages`."""
        streams = statistics["streams"]
        perfect = 100 * (1 - statistics["failed"] / streams)
        return {"error_free": statistics["error_free"] / streams, "perfect": perfect, **percentages(statistics)}
