from .model import (
    ViT,
    interpolate_positions,
    vit_b16,
    vit_b32,
    vit_h14,
    vit_l16,
    vit_l32,
    vit_r50_b16,
    vit_s16,
    vit_s32,
    vit_ti16,
)

__all__ = [
    "ViT",
    "interpolate_positions",
    "vit_b16",
    "vit_b32",
    "vit_h14",
    "vit_l16",
    "vit_l32",
    "vit_r50_b16",
    "vit_s16",
    "vit_s32",
    "vit_ti16",
]
