# ruff: noqa: E501, I001
"""Made by python -m tests.stubs: the presets, and the class that each returns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from zoo import hub as hub
from zoo.catalog import PAPERS as PAPERS, list_models as list_models
from zoo.papers import alexnet as _alexnet
from zoo.papers import bert as _bert
from zoo.papers import ddpm as _ddpm
from zoo.papers import gan as _gan
from zoo.papers import gpt_2 as _gpt_2
from zoo.papers import lstm as _lstm
from zoo.papers import mixture_of_experts as _mixture_of_experts
from zoo.papers import resnet as _resnet
from zoo.papers import roberta as _roberta
from zoo.papers import switch_transformer as _switch_transformer
from zoo.papers import transformer as _transformer
from zoo.papers import vae as _vae
from zoo.papers import vit as _vit
from zoo.papers import vq_vae as _vq_vae
from zoo.papers.alexnet import alexnet as alexnet
from zoo.papers.alexnet import alexnet_one_tower as alexnet_one_tower
from zoo.papers.alexnet import cifar_relu as cifar_relu
from zoo.papers.alexnet import cifar_tanh as cifar_tanh
from zoo.papers.bert import bert_base as bert_base
from zoo.papers.bert import bert_large as bert_large
from zoo.papers.bert import bert_tiny as bert_tiny
from zoo.papers.bert import bert_mini as bert_mini
from zoo.papers.bert import bert_small as bert_small
from zoo.papers.bert import bert_medium as bert_medium
from zoo.papers.ddpm import unet_cifar10 as unet_cifar10
from zoo.papers.ddpm import unet_256 as unet_256
from zoo.papers.ddpm import unet_small as unet_small
from zoo.papers.gan import gan_mnist_generator as gan_mnist_generator
from zoo.papers.gan import gan_mnist_discriminator as gan_mnist_discriminator
from zoo.papers.gan import gan_faces_generator as gan_faces_generator
from zoo.papers.gan import gan_faces_discriminator as gan_faces_discriminator
from zoo.papers.gan import gan_cifar10_generator as gan_cifar10_generator
from zoo.papers.gan import gan_cifar10_discriminator as gan_cifar10_discriminator
from zoo.papers.gan import gan_cifar10_conv_generator as gan_cifar10_conv_generator
from zoo.papers.gan import gan_cifar10_conv_discriminator as gan_cifar10_conv_discriminator
from zoo.papers.gan import dcgan_generator as dcgan_generator
from zoo.papers.gan import dcgan_discriminator as dcgan_discriminator
from zoo.papers.gpt_2 import gpt2_small as gpt2_small
from zoo.papers.gpt_2 import gpt2_medium as gpt2_medium
from zoo.papers.gpt_2 import gpt2_large as gpt2_large
from zoo.papers.gpt_2 import gpt2_xl as gpt2_xl
from zoo.papers.lstm import zaremba_small as zaremba_small
from zoo.papers.lstm import zaremba_medium as zaremba_medium
from zoo.papers.lstm import zaremba_large as zaremba_large
from zoo.papers.lstm import adding_1997 as adding_1997
from zoo.papers.lstm import multiplication_1997 as multiplication_1997
from zoo.papers.lstm import temporal_order_6a as temporal_order_6a
from zoo.papers.lstm import temporal_order_6b as temporal_order_6b
from zoo.papers.lstm import reber_4x1 as reber_4x1
from zoo.papers.lstm import reber_3x2 as reber_3x2
from zoo.papers.lstm import continual_reber as continual_reber
from zoo.papers.lstm import continual_reber_1997 as continual_reber_1997
from zoo.papers.lstm import adding_lstm as adding_lstm
from zoo.papers.lstm import adding_rnn as adding_rnn
from zoo.papers.lstm import reber_lstm as reber_lstm
from zoo.papers.mixture_of_experts import moe_4 as moe_4
from zoo.papers.mixture_of_experts import moe_32 as moe_32
from zoo.papers.mixture_of_experts import moe_256 as moe_256
from zoo.papers.mixture_of_experts import moe_256_h as moe_256_h
from zoo.papers.mixture_of_experts import moe_1024_h as moe_1024_h
from zoo.papers.mixture_of_experts import moe_4096_h as moe_4096_h
from zoo.papers.mixture_of_experts import moe_34m as moe_34m
from zoo.papers.mixture_of_experts import moe_143m as moe_143m
from zoo.papers.mixture_of_experts import moe_16384_h as moe_16384_h
from zoo.papers.mixture_of_experts import moe_65536_h as moe_65536_h
from zoo.papers.mixture_of_experts import moe_131072_h as moe_131072_h
from zoo.papers.mixture_of_experts import moe_1_wide as moe_1_wide
from zoo.papers.mixture_of_experts import moe_1_deep as moe_1_deep
from zoo.papers.mixture_of_experts import lstm_4x512 as lstm_4x512
from zoo.papers.mixture_of_experts import lstm_2048_512 as lstm_2048_512
from zoo.papers.resnet import resnet18 as resnet18
from zoo.papers.resnet import resnet34 as resnet34
from zoo.papers.resnet import resnet50 as resnet50
from zoo.papers.resnet import resnet101 as resnet101
from zoo.papers.resnet import resnet152 as resnet152
from zoo.papers.resnet import resnet50_v1_5 as resnet50_v1_5
from zoo.papers.resnet import resnet101_v1_5 as resnet101_v1_5
from zoo.papers.resnet import resnet152_v1_5 as resnet152_v1_5
from zoo.papers.resnet import plain18 as plain18
from zoo.papers.resnet import plain34 as plain34
from zoo.papers.resnet import resnet20 as resnet20
from zoo.papers.resnet import resnet32 as resnet32
from zoo.papers.resnet import resnet44 as resnet44
from zoo.papers.resnet import resnet56 as resnet56
from zoo.papers.resnet import resnet110 as resnet110
from zoo.papers.resnet import resnet1202 as resnet1202
from zoo.papers.resnet import plain20 as plain20
from zoo.papers.resnet import plain32 as plain32
from zoo.papers.resnet import plain44 as plain44
from zoo.papers.resnet import plain56 as plain56
from zoo.papers.resnet import plain110 as plain110
from zoo.papers.roberta import roberta_base as roberta_base
from zoo.papers.roberta import roberta_large as roberta_large
from zoo.papers.switch_transformer import switch_decoder_base as switch_decoder_base
from zoo.papers.switch_transformer import switch_decoder_tiny as switch_decoder_tiny
from zoo.papers.transformer import transformer_base as transformer_base
from zoo.papers.transformer import transformer_big as transformer_big
from zoo.papers.transformer import transformer_small as transformer_small
from zoo.papers.transformer import transformer_tiny as transformer_tiny
from zoo.papers.vae import vae_mnist as vae_mnist
from zoo.papers.vae import vae_frey as vae_frey
from zoo.papers.vit import vit_ti16 as vit_ti16
from zoo.papers.vit import vit_s16 as vit_s16
from zoo.papers.vit import vit_s32 as vit_s32
from zoo.papers.vit import vit_b16 as vit_b16
from zoo.papers.vit import vit_b32 as vit_b32
from zoo.papers.vit import vit_l16 as vit_l16
from zoo.papers.vit import vit_l32 as vit_l32
from zoo.papers.vit import vit_h14 as vit_h14
from zoo.papers.vit import vit_r50_b16 as vit_r50_b16
from zoo.papers.vq_vae import vqvae_cifar10 as vqvae_cifar10
from zoo.papers.vq_vae import vqvae_imagenet as vqvae_imagenet
from zoo.papers.vq_vae import vqvae_dmlab as vqvae_dmlab
from zoo.papers.vq_vae import vqvae_sonnet as vqvae_sonnet
from zoo.papers.vq_vae import pixelcnn_imagenet as pixelcnn_imagenet

__version__: str

@overload
def create_model(name: Literal['alexnet'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _alexnet.AlexNet: ...
@overload
def create_model(name: Literal['alexnet_one_tower'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _alexnet.OneTowerAlexNet: ...
@overload
def create_model(name: Literal['cifar_relu', 'cifar_tanh'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _alexnet.CifarNet: ...
@overload
def create_model(name: Literal['bert_base', 'bert_large', 'bert_tiny', 'bert_mini', 'bert_small', 'bert_medium'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _bert.Bert: ...
@overload
def create_model(name: Literal['unet_cifar10', 'unet_256', 'unet_small'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _ddpm.UNet: ...
@overload
def create_model(name: Literal['gan_mnist_generator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.MlpGenerator: ...
@overload
def create_model(name: Literal['gan_mnist_discriminator', 'gan_faces_discriminator', 'gan_cifar10_discriminator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.MaxoutDiscriminator: ...
@overload
def create_model(name: Literal['gan_faces_generator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.FaceGenerator: ...
@overload
def create_model(name: Literal['gan_cifar10_generator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.LinearGenerator: ...
@overload
def create_model(name: Literal['gan_cifar10_conv_generator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.DeconvGenerator: ...
@overload
def create_model(name: Literal['gan_cifar10_conv_discriminator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.ConvMaxoutDiscriminator: ...
@overload
def create_model(name: Literal['dcgan_generator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.DcganGenerator: ...
@overload
def create_model(name: Literal['dcgan_discriminator'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gan.DcganDiscriminator: ...
@overload
def create_model(name: Literal['gpt2_small', 'gpt2_medium', 'gpt2_large', 'gpt2_xl'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _gpt_2.GPT2: ...
@overload
def create_model(name: Literal['zaremba_small', 'zaremba_medium', 'zaremba_large'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _lstm.LstmLanguageModel: ...
@overload
def create_model(name: Literal['adding_1997', 'multiplication_1997', 'temporal_order_6a', 'temporal_order_6b', 'reber_4x1', 'reber_3x2', 'continual_reber', 'continual_reber_1997'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _lstm.BlockNetwork: ...
@overload
def create_model(name: Literal['adding_lstm', 'adding_rnn', 'reber_lstm'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _lstm.Regressor: ...
@overload
def create_model(name: Literal['moe_4', 'moe_32', 'moe_256', 'moe_256_h', 'moe_1024_h', 'moe_4096_h', 'moe_34m', 'moe_143m', 'moe_16384_h', 'moe_65536_h', 'moe_131072_h', 'moe_1_wide', 'moe_1_deep', 'lstm_4x512', 'lstm_2048_512'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _mixture_of_experts.MixtureLanguageModel: ...
@overload
def create_model(name: Literal['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnet50_v1_5', 'resnet101_v1_5', 'resnet152_v1_5', 'plain18', 'plain34'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _resnet.ResNet: ...
@overload
def create_model(name: Literal['resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110', 'resnet1202', 'plain20', 'plain32', 'plain44', 'plain56', 'plain110'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _resnet.CifarResNet: ...
@overload
def create_model(name: Literal['roberta_base', 'roberta_large'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _roberta.Roberta: ...
@overload
def create_model(name: Literal['switch_decoder_base', 'switch_decoder_tiny'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _switch_transformer.SwitchLanguageModel: ...
@overload
def create_model(name: Literal['transformer_base', 'transformer_big', 'transformer_small', 'transformer_tiny'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _transformer.Transformer: ...
@overload
def create_model(name: Literal['vae_mnist', 'vae_frey'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _vae.VAE: ...
@overload
def create_model(name: Literal['vit_ti16', 'vit_s16', 'vit_s32', 'vit_b16', 'vit_b32', 'vit_l16', 'vit_l32', 'vit_h14', 'vit_r50_b16'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _vit.ViT: ...
@overload
def create_model(name: Literal['vqvae_cifar10', 'vqvae_imagenet', 'vqvae_dmlab', 'vqvae_sonnet'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _vq_vae.VQVAE: ...
@overload
def create_model(name: Literal['pixelcnn_imagenet'], weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> _vq_vae.GatedPixelCNN: ...
@overload
def create_model(name: str, weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> Any: ...
