from .from_config import adapted
from .model import Bottleneck, apply

__all__ = ["Bottleneck", "adapted", "apply"]
