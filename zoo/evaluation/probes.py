"""How much do the features know? Simple classifiers on frozen `forward_features`: (objective, data, generator, **params) -> metrics.

B batch, N training items, D features, K classes. Neither sees augmented images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.base import Data, Split
from zoo.data.loader import sweep
from zoo.errors import ConfigError


def knn(objective: nn.Module, data: Data, generator: torch.Generator, k: int = 20, temperature: float = 0.07) -> dict[str, float]:
    """Each test item asks the k training items of the largest cosine similarity s; their votes weigh exp(s / temperature) (Wu et al. 2018,
    arXiv:1805.01978, section 3.4). knn_accuracy in percent."""
    bank, labels = features(objective, data.train, generator.device)
    bank = F.normalize(bank)
    votes = F.one_hot(labels).to(bank.dtype)  # (N, K)
    test, truth = features(objective, data.test, generator.device)
    correct = 0
    for asking, label in zip(F.normalize(test).split(1024), truth.split(1024)):
        similarity, nearest = (asking @ bank.T).topk(min(k, len(bank)))  # (B, k)
        score = (votes[nearest] * (similarity / temperature).exp()[..., None]).sum(1)  # (B, K)
        correct += (score.argmax(-1) == label).sum().item()
    return {"knn_accuracy": 100 * correct / len(truth)}


def linear_probe(objective: nn.Module, data: Data, generator: torch.Generator, c: float = 1.0) -> dict[str, float]:
    """Multinomial logistic regression on standardised features, by scikit-learn's L-BFGS. linear_probe_accuracy in percent.

    Args:
        c: inverse of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_test, y_test) = (features(objective, split, generator.device) for split in (data.train, data.test))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    probe.fit(x.double().cpu().numpy(), y.cpu().numpy())
    return {"linear_probe_accuracy": 100 * probe.score(x_test.double().cpu().numpy(), y_test.cpu().numpy())}


def features(objective: nn.Module, split: Split, device: torch.device, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """-> (N, D) float32 and labels (N,), in the order of the split.

    Raises:
        ConfigError: if the model has no `forward_features`.
    """
    if not hasattr(getattr(objective, "model", None), "forward_features"):
        raise ConfigError("knn and linear_probe need a model with forward_features, which this one lacks")
    found = [
        (objective.model.forward_features(batch["image"]).flatten(1).float(), batch["label"]) for _, _, batch in sweep(split, batch_size, device)
    ]
    rows, labels = zip(*found)
    return torch.cat(rows), torch.cat(labels)
