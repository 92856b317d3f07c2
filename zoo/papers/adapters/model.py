"""Parameter-Efficient Transfer Learning for NLP (Houlsby et al., 2019, arXiv:1902.00751): bottleneck adapters.

d numbers of what is adapted, m of the bottleneck. An adapter stands behind a module of any model, found by its name, and takes its output. The
model keeps its classes and the names of its parameters; `<module>.adapter.down.weight` and so on come to them.
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """h + W_up phi(W_down h + b_down) + b_up (figure 2, right): 2 m d + d + m parameters (section 2.1).

    It starts near the identity: weights N(0, init_std^2), cut off at two standard deviations (section 3.6), and biases 0.
    """

    def __init__(self, d: int, m: int, init_std: float = 1e-2):
        super().__init__()
        self.down = nn.Linear(d, m)
        self.up = nn.Linear(m, d)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:  # (..., d) -> (..., d)
        # The paper says "a nonlinearity"; the authors' code has the GELU in its approximation by tanh.
        return h + self.up(F.gelu(self.down(h), approximate="tanh"))


def through_adapter(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: the output, of several the first, goes through the module's adapter."""
    if isinstance(output, tuple):
        return module.adapter(output[0]), *output[1:]
    return module.adapter(output)


def apply(model: nn.Module, size: int, after: Sequence[str], train: Sequence[str] = (), init_std: float = 1e-2) -> nn.Module:
    """Puts an adapter behind each module that matches; only adapters, layer norms and what `train` names learn (section 2.1).

    The paper's place is behind both sub-layers of each layer, "after the projection back to the input size, but before adding the skip
    connection": of zoo.papers.bert, after=["attention", "fc2"].

    Args:
        model: is changed in place; its modules and parameters keep their names.
        size: m.
        after: names of modules, whole or their last parts, or shell patterns of either. A module's output has as many numbers as its last
            nn.Linear has.
        train: names or patterns of modules and parameters that are trained whole, such as the head of a new task.

    Returns:
        The model.

    Raises:
        ValueError: if a name matches nothing (names the nearest), a module has an adapter or no nn.Linear, or an argument is out of range.
    """
    for key, names in {"after": after, "train": train}.items():
        if isinstance(names, str):
            raise ValueError(f"{key} must be a list of names or patterns such as [{names}], not {names!r}")
    if size < 1 or not init_std > 0 or not after:
        raise ValueError(f"size must be at least 1, init_std above 0 and after not empty, not {size}, {init_std} and {list(after)}")
    modules = {path: module for path, module in model.named_modules() if path and ".adapter" not in f".{path}"}
    places = found("after", after, modules)
    parameters = {name: p for name, p in model.named_parameters() if ".adapter." not in f".{name}"}
    trained = found("train", train, [*modules, *parameters])
    layers = {path: last_linear(model, path, modules[path]) for path in places}
    model.requires_grad_(False)
    for path, layer in layers.items():
        adapter = Bottleneck(layer.out_features, size, init_std)
        modules[path].adapter = adapter.to(layer.weight.device, layer.weight.dtype).train(modules[path].training)
        modules[path].register_forward_hook(through_adapter)
    for module in modules.values():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    for name in trained:
        (parameters if name in parameters else modules)[name].requires_grad_(True)
    return model


def found(key: str, patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The dotted names of which a pattern matches the whole or the last parts."""
    names, matching = list(names), []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not matched:
            depth = pattern.count(".") + 1
            ends = list(dict.fromkeys(".".join(name.split(".")[-depth:]) for name in names))
            near = difflib.get_close_matches(pattern, ends, n=3, cutoff=0.4) or ends[:3]
            raise ValueError(f"{key}: nothing in the model is called {pattern!r}; the nearest are: {', '.join(near)}")
        matching += matched
    return list(dict.fromkeys(matching))


def last_linear(model: nn.Module, path: str, module: nn.Module) -> nn.Linear:
    """The layer that makes a module's output."""
    if hasattr(module, "adapter"):
        raise ValueError(f"{path} has an adapter already: name other modules")
    if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention):
        raise ValueError(f"{path} is never called by the nn.MultiheadAttention around it: name {path.rpartition('.')[0]} instead")
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise ValueError(f"{path} is {type(module).__name__} without an nn.Linear, whose outputs would tell how wide its adapter must be")
    return layers[-1]
