"""How the experts are used, as a picture: the one of mixture_of_experts."""

from ..mixture_of_experts.figures import expert_use

__all__ = ["expert_use"]
