"""Batch statistics and their like, kept so that a bad step can be undone without asking the device whether it was bad."""

import torch
from torch import Tensor, nn


class Buffers:
    """The persistent buffers of a module, moved into one flat tensor a dtype: a snapshot or its return is then one operation.

    Modules must update such buffers in place (as torch's own do), not replace them.
    """

    def __init__(self, module: nn.Module):
        self.flats = []
        state = set(module.state_dict())
        places: dict[torch.dtype, list[tuple[nn.Module, str]]] = {}
        for prefix, owner in module.named_modules():
            for name, value in owner.named_buffers(recurse=False):
                if f"{prefix}.{name}".lstrip(".") in state:
                    places.setdefault(value.dtype, []).append((owner, name))
        for owned in places.values():
            values = [getattr(owner, name) for owner, name in owned]
            flat = torch.cat([value.flatten() for value in values])
            for (owner, name), part, value in zip(owned, flat.split([v.numel() for v in values]), values):
                setattr(owner, name, part.view(value.shape))  # setattr: torch's recurrent layers keep a list of their tensors
            self.flats.append(flat)

    def snapshot(self) -> list[Tensor]:
        return [flat.clone() for flat in self.flats]

    def undo(self, skip: Tensor, before: list[Tensor]) -> None:
        """Puts the snapshot back where `skip` (a 0-dim tensor) is 1."""
        for flat, old in zip(self.flats, before):
            flat.copy_(torch.where(skip.bool(), old, flat))
