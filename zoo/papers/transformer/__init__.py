from .model import Transformer, attention, sinusoids, transformer_base, transformer_big, transformer_small, transformer_tiny

__all__ = ["Transformer", "attention", "sinusoids", "transformer_base", "transformer_big", "transformer_small", "transformer_tiny"]
