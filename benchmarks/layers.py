"""Cases of layers: adapters on a frozen BERT, and a mixture of experts by itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case, ours

# ---- low-rank adapters ----

ADAPTED = ["qkv", "attention.out", "fc1", "fc2"]  # all linear layers of a block
base = ours("bert_mini", vocab_size=8192, max_length=128, head="classification")


@dataclass(frozen=True)
class Adapting(Case):
    """A frozen BERT with adapters of rank 8 and dropout 0.1, two classes, on `batch` texts of `size` tokens. Only the adapters learn."""

    def fresh(self, device: torch.device) -> Batch:
        return torch.randint(5, 8192, (self.batch, self.size), device=device), torch.randint(2, (self.batch,), device=device)


def adapted() -> nn.Module:
    from zoo.papers.lora import apply

    return apply(base(), rank=8, alpha=16, targets=ADAPTED, dropout=0.1)


def peft_adapted() -> nn.Module:
    """The same base, on the same layers, by peft."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base(), LoraConfig(r=8, lora_alpha=16, target_modules=ADAPTED, lora_dropout=0.1))


def merged() -> nn.Module:
    from zoo.papers.lora import merge

    model = adapted().eval()
    merge(model)
    return model


class Merged(Adapting):
    """An adapter that is merged into the weights, beside the model without one."""

    works = ("inference",)


# ---- a mixture of experts ----

WIDTH, HIDDEN, EXPERTS, K = 256, 768, 32, 2


class Mixing(Case):
    """A layer of 32 experts, 2 of them for each of `batch` x `size` tokens: gradients (by the tokens, too), and the forward pass.

    Ours and the loop: W2 ReLU(W1 x), 256-768-256. Mixtral's experts have a third matrix, W2 (ReLU(W1 x) * W3 x); with 512 hidden units they
    have as many parameters and multiplications. Gates: ours adds noise in training and estimates the load, which the others don't. All gates
    start random, so that their experts are used about evenly.
    """

    works = ("gradients", "inference")
    countable = False  # not those of `grouped_mm`

    def fresh(self, device: torch.device) -> Batch:
        x, target = (torch.randn(self.batch, self.size, WIDTH, device=device) for _ in range(2))
        return x, target

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        return lambda x, target: F.mse_loss(model(x.detach().requires_grad_()).float(), target)

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        return lambda x, target: model(x)


def mixture() -> nn.Module:
    from zoo.papers.mixture_of_experts import MixtureOfExperts, NoisyTopKGate

    layer = MixtureOfExperts(NoisyTopKGate(WIDTH, EXPERTS, K), WIDTH, HIDDEN)
    nn.init.normal_(layer.gate.w_gate, std=WIDTH**-0.5)
    return layer


class LoopOverExperts(nn.Module):
    """As it is written first: each expert a network of its own, which gets its tokens, one after the other."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        nn.init.normal_(self.gate.weight, std=WIDTH**-0.5)
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(linear(WIDTH, HIDDEN), nn.ReLU(), linear(HIDDEN, WIDTH)) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        tokens = x.flatten(0, 1)
        top, chosen = self.gate(tokens).float().topk(K)
        weights, y = top.softmax(-1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            y.index_add_(0, token, (weights[token, place, None] * expert(tokens[token])).to(y.dtype))
        return y.view_as(x)


def mixtral(experts_implementation: str) -> Callable[[], nn.Module]:
    """transformers' block with its loop over experts (eager), or by grouped products (grouped_mm)."""

    def build() -> nn.Module:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        config = MixtralConfig(hidden_size=WIDTH, intermediate_size=2 * HIDDEN // 3, num_local_experts=EXPERTS, num_experts_per_tok=K,
                               hidden_act="relu", experts_implementation=experts_implementation)  # fmt: skip
        block = MixtralSparseMoeBlock(config)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        return block

    return build


CASES = {
    "lora_bert": Adapting(adapted, {"peft": peft_adapted}, 8, "adamw", False, 128),
    "lora_bert_merged": Merged(merged, {"without adapter": base}, 8, "adamw", False, 128),
    "moe_32": Mixing(
        mixture,
        {"loop": LoopOverExperts, "Mixtral": mixtral("eager"), "Mixtral (grouped_mm)": mixtral("grouped_mm")}, 8, "adamw", False, 128,
    ),
}  # fmt: skip
