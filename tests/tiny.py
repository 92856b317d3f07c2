"""A small instance of every kind of model that the presets make, and inputs for it: name as config.json has it -> (arguments, inputs)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = Callable[[], tuple[Tensor, ...]]


def images(*shape: int) -> Inputs:
    return lambda: (torch.rand(2, *shape),)


def noise(*shape: int) -> Inputs:
    return lambda: (torch.randn(2, *shape),)


def tokens(size: int, *shape: int) -> Inputs:
    return lambda: (torch.randint(1, size, (2, *shape)),)


BERT = {"vocab_size": 20, "depth": 2, "d_model": 8, "n_heads": 2, "d_ff": 16, "max_length": 12}
VIT = {"_target_": "zoo.papers.vit.ViT", "image_size": 8, "patch_size": 4, "depth": 2, "d_model": 8, "n_heads": 2, "num_classes": 3}
SWITCH = {"vocab_size": 11, "depth": 2, "d_model": 8, "d_ff": 16, "n_heads": 2, "experts": 4}
TINY: dict[str, tuple[dict[str, Any], Inputs]] = {
    "adapters.adapted": ({"base": VIT, "size": 2, "after": ["attention", "mlp"], "train": ["head"]}, images(3, 8, 8)),
    "alexnet": ({"image_size": 63, "widths": [4, 4, 4, 4, 4], "hidden": 8, "num_classes": 3}, images(3, 63, 63)),
    "alexnet_one_tower": ({"widths": [4, 4, 4, 4, 4], "hidden": 8, "num_classes": 3}, images(3, 63, 63)),
    "cifar_relu": ({"image_size": 8, "widths": [4, 4, 4, 4]}, images(3, 8, 8)),
    "cifar_tanh": ({"image_size": 8, "widths": [4, 4, 4, 4], "lrn": True}, images(3, 8, 8)),
    "bert_base": ({**BERT, "head": "pretraining"}, tokens(20, 7)),
    "unet_small": ({}, lambda: (torch.randn(2, 1, 8, 8), torch.tensor([3, 7]))),
    "ddpm.UNet": (
        {"image_size": 8, "width": 8, "groups": 2, "multipliers": [1, 2], "blocks": 1, "attention": [4], "num_classes": 3},
        lambda: (torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), torch.tensor([0, 2])),
    ),
    "gan_mnist_generator": ({"latent": 5, "hidden": 6}, noise(5)),
    "gan_mnist_discriminator": ({"units": 6, "pieces": 2}, images(1, 28, 28)),
    "gan_faces_generator": ({"image_size": 8, "latent": 5, "hidden": 6}, noise(5)),
    "gan_cifar10_generator": ({"latent": 5, "hidden": 6}, noise(5)),
    "gan_cifar10_conv_generator": ({"latent": 5, "hidden": 6, "maps": 2}, noise(5)),
    "gan_cifar10_conv_discriminator": ({"width": 2, "units": 4}, images(3, 32, 32)),
    "dcgan_generator": ({"image_size": 16, "latent": 5, "width": 4}, noise(5)),
    "dcgan_discriminator": ({"image_size": 16, "width": 4}, images(3, 16, 16)),
    "gpt_2.GPT2": ({"vocab_size": 20, "context": 9, "depth": 2, "d_model": 8, "n_heads": 2}, tokens(20, 7)),
    "lora.adapted": ({"base": VIT, "rank": 2, "alpha": 2, "targets": ["qkv:qv"], "train": ["head"]}, images(3, 8, 8)),
    "zaremba_small": ({"vocab_size": 11}, tokens(11, 4)),
    "adding_1997": ({}, noise(5, 2)),
    "continual_reber": ({}, noise(5, 7)),
    "adding_lstm": ({"hidden": 4}, noise(5, 2)),
    "adding_rnn": ({"hidden": 4}, noise(5, 2)),
    "moe_4": ({"vocab_size": 11, "d_model": 8, "hidden": 8}, tokens(11, 4)),
    "moe_256_h": ({"vocab_size": 11, "d_model": 8, "hidden": 2, "groups": 16}, tokens(11, 4)),
    "mixture_of_experts.dense_language_model": ({"vocab_size": 11, "d_model": 8, "hidden": [8, 4]}, tokens(11, 4)),
    "resnet18": ({"width": 4, "num_classes": 3}, images(3, 64, 48)),
    "resnet50": ({"width": 4, "num_classes": 3}, images(3, 64, 48)),
    "resnet50_v1_5": ({"width": 4, "num_classes": 3}, images(3, 64, 48)),
    "plain18": ({"width": 4, "num_classes": 3}, images(3, 64, 48)),
    "resnet20": ({"width": 4}, images(3, 32, 24)),
    "roberta_base": (BERT, tokens(20, 7)),
    "switch_transformer.SwitchLanguageModel": (SWITCH, tokens(11, 4)),
    "transformer_tiny": ({"vocab_size": 20}, lambda: (torch.randint(1, 20, (2, 7)), torch.randint(1, 20, (2, 5)))),
    "vae_mnist": ({"image_size": 8, "latent": 3, "hidden": 6}, lambda: (torch.rand(2, 1, 8, 8), torch.randn(2, 1, 3))),
    "vae_frey": ({"latent": 3, "hidden": 6}, lambda: (torch.rand(2, 1, 28, 20), torch.randn(2, 2, 3))),
    "vit.ViT": (
        {"image_size": [8, 12], "patch_size": 4, "depth": 2, "d_model": 8, "n_heads": 2, "num_classes": 3, "positions": "2d", "pool": "mean"},
        images(3, 8, 12),
    ),
    "vit.model.ViT": (
        {"image_size": [32, 48], "patch_size": 1, "depth": 2, "d_model": 24, "n_heads": 3, "num_classes": 3, "resnet": [1, 2]},
        images(3, 32, 48),
    ),
    "vit_ti16": ({"image_size": 32, "num_classes": 3}, images(3, 32, 32)),
    "vqvae_sonnet": ({"image_size": 8, "hidden": 8, "residual_hidden": 4, "codes": 16, "code_width": 4}, images(3, 8, 8)),
    "vqvae_cifar10": ({"image_size": 8, "hidden": 8, "residual_hidden": 4, "codes": 16, "code_width": 4, "decay": None}, images(3, 8, 8)),
    "vq_vae.GatedPixelCNN": (
        {"codes": 16, "grid": [4, 4], "channels": 8, "layers": 2, "kernel": 3, "first_kernel": 5, "head": 8, "classes": 3},
        lambda: (torch.randint(16, (2, 4, 4)), torch.tensor([0, 2])),
    ),
}
