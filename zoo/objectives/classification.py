"""Classification of images: cross-entropy, accuracy."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classification(nn.Module):
    """Cross-entropy -log p(label | image), summed over the items; p = softmax of the model's logits.

    Where the data mix images, `target` (B, num_classes) holds the mixed labels and the loss is -sum_k target_k log p_k.

    Args:
        model: images (B, C, H, W) -> logits (B, num_classes).
        label_smoothing: share e of the target that is spread evenly over all classes, in training only: (1 - e) one_hot + e / num_classes.
    """

    turns = ("model",)

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits, label = self.model(batch["image"]), batch["label"]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a sum over a batch needs more than bf16 has
        loss = F.cross_entropy(logits, batch.get("target", label), reduction="sum", label_smoothing=self.label_smoothing)
        return {"loss": loss}, {"accuracy": 100 * (logits.detach().argmax(-1) == label).sum()}  # percent, once divided by the items

    def check(self, facts: dict[str, int]) -> None:
        """Tries an empty image. ValueError where the model doesn't take such images or tells another number of classes apart."""
        if not {"channels", "image_size", "num_classes"} <= facts.keys():
            return
        shape = (facts["channels"], facts["image_size"], facts["image_size"])
        like, training = next(self.model.parameters()), self.model.training
        try:
            with torch.no_grad():
                logits = self.model.eval()(like.new_zeros(1, *shape))
        except RuntimeError as error:
            size = " x ".join(map(str, shape))
            raise ValueError(f"the model does not take the data's images of {size} pixels: {str(error).splitlines()[0]}") from error
        finally:
            self.model.train(training)
        if logits.shape != (1, facts["num_classes"]):
            classes = facts["num_classes"]
            raise ValueError(f"the model tells {logits.shape[-1]} classes apart and the data has {classes}: set model.num_classes={classes}")

    def predict(self, batch: dict[str, Tensor]) -> Tensor:  # -> (B, num_classes) float32, probabilities
        return self.model(batch["image"]).float().softmax(-1)

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the items: correct, correct5 (label among the 5 largest logits; only with more than 5 classes), nll in nats, items."""
        logits, label = self.model(batch["image"]).double(), batch["label"]
        statistics = {
            "correct": (logits.argmax(-1) == label).sum().double(),
            "nll": F.cross_entropy(logits, label, reduction="sum"),
            "items": logits.new_full((), len(label)),
        }
        if logits.shape[-1] > 5:
            statistics["correct5"] = (logits.topk(5).indices == label[:, None]).sum().double()
        return statistics

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """accuracy, error and top5_accuracy in percent; loss: mean nll in nats."""
        items = statistics["items"]
        accuracy = 100 * statistics["correct"] / items
        metrics = {"accuracy": accuracy, "error": 100 - accuracy, "loss": statistics["nll"] / items}
        if "correct5" in statistics:
            metrics["top5_accuracy"] = 100 * statistics["correct5"] / items
        return metrics
