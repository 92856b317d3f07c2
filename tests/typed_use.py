"""What a user writes, for pyright (tests/test_types.py): nothing here is run."""

from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import zoo
from zoo import resnet50, vit_b16
from zoo.data.base import Data
from zoo.data.items import Items
from zoo.objectives import Classification
from zoo.papers.bert import Bert, bert_base
from zoo.papers.gan import MlpGenerator
from zoo.papers.resnet import CifarResNet, ResNet
from zoo.papers.vit import ViT

images = torch.rand(2, 3, 224, 224)

assert_type(resnet50(num_classes=10), ResNet)
assert_type(vit_b16(), ViT)
assert_type(zoo.resnet20(), CifarResNet)
assert_type(bert_base(head="pretraining"), Bert)
assert_type(resnet50().forward_features(images), Tensor)
assert_type(ViT(image_size=(32, 48), patch_size=4, depth=2, d_model=8, n_heads=2).attention_maps(images), Tensor)

assert_type(zoo.create_model("resnet20", weights="digits"), CifarResNet)
assert_type(zoo.create_model("gan_mnist_generator", latent=8), MlpGenerator)
assert_type(zoo.create_model("resnet20", weights=Path("mine"), skip=["fc.*"], num_classes=3).forward_features(images), Tensor)
assert_type(zoo.create_model(input()), Any)
assert_type(zoo.list_models("*vit*"), list[str])
assert_type(zoo.PAPERS["resnet"].presets["resnet50"], int)
assert_type(zoo.__version__, str)

assert_type(zoo.hub.from_pretrained("owner/name"), nn.Module)
assert_type(zoo.hub.save_pretrained(resnet50(), "folder", "resnet50", num_classes=5), Path)
assert_type(zoo.hub.push_to_hub(resnet50(), "owner/name"), str)
assert_type(zoo.hub.shipped(), dict[str, list[str]])

assert_type(Classification(nn.Identity()).summarise({"items": 1.0}), dict[str, float])
split = Items([{"image": images[0], "label": 1}], seed=1)
assert_type(Data(split, valid=None, test=split, facts={"num_classes": 2}).classes, list[str] | None)

# What is wrong is told; pyright itself tells where it isn't.
zoo.resnt50()  # pyright: ignore[reportAttributeAccessIssue]
zoo.create_model(3)  # pyright: ignore[reportCallIssue, reportArgumentType]
Classification(nn.Identity(), label_smoothing="much")  # pyright: ignore[reportArgumentType]
ViT(image_size=224, n_head=3)  # pyright: ignore[reportCallIssue]
