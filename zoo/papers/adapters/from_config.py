"""What a configuration names: a model of any paper, described by its own `_target_`, with adapters in it.

    model:
      _target_: zoo.papers.adapters.adapted
      base: {_target_: zoo.papers.vit.ViT, ...}
      size: 8
      after: [attention, mlp]
      train: [head]
    init: runs/vit/...                         # the pre-trained weights
    init_skip: ["*.adapter.*", "head.*"]       # which it doesn't have
"""

from torch import nn

from .model import apply


def adapted(base: dict, size: int, after: list, train: list = (), init_std: float = 1e-2) -> nn.Module:
    """The base, of zoo's own classes only, with adapters in it; see `zoo.papers.adapters.apply`."""
    from zoo.schema import check_call  # here, so that the folder works without the trainer
    from zoo.training.build import call

    return apply(call("model.base", check_call("model.base", base, ())), size, after, train, init_std)
