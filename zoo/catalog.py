"""The papers of the zoo, a record each. README table, `python -m zoo list`, tests and documents iterate over it; nothing here imports torch."""

import difflib
import fnmatch
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Paper:
    """One paper: who wrote it, what it builds on, and the presets of `zoo.papers.<key>` with their parameter counts.

    A count is what the preset has with its default arguments, on which the tests insist.
    """

    key: str
    title: str
    authors: str
    year: int
    source: str
    area: str
    summary: str
    presets: dict[str, int]
    builds_on: tuple[str, ...] = field(default=())


PAPERS = {
    paper.key: paper
    for paper in [
        Paper(
            key="adapters",
            title="Parameter-Efficient Transfer Learning for NLP",
            authors="Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly",
            year=2019,
            source="arXiv:1902.00751",
            area="language models",
            summary="small bottlenecks in a frozen model learn a new task",
            presets={},
        ),
        Paper(
            key="alexnet",
            title="ImageNet Classification with Deep Convolutional Neural Networks",
            authors="Krizhevsky, Sutskever, Hinton",
            year=2012,
            source="NIPS 2012",
            area="vision",
            summary="a deep convolutional network with ReLU and dropout wins ImageNet",
            presets={
                "alexnet": 60_965_224,
                "alexnet_one_tower": 61_100_840,
                "cifar_relu": 1_901_386,
                "cifar_tanh": 1_901_386,
            },
        ),
        Paper(
            key="bert",
            title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            authors="Devlin, Chang, Lee, Toutanova",
            year=2018,
            source="arXiv:1810.04805",
            area="language models",
            summary="an encoder that fills in hidden words, then learns any task with one more layer",
            presets={
                "bert_base": 109_482_240,
                "bert_large": 335_141_888,
                "bert_tiny": 4_385_920,
                "bert_mini": 11_170_560,
                "bert_small": 28_763_648,
                "bert_medium": 41_373_184,
            },
        ),
        Paper(
            key="ddpm",
            title="Denoising Diffusion Probabilistic Models",
            authors="Ho, Jain, Abbeel",
            year=2020,
            source="arXiv:2006.11239",
            area="generative models",
            summary="images from noise by learned denoising steps",
            presets={
                "unet_cifar10": 35_746_307,
                "unet_256": 113_673_219,
                "unet_small": 176_849,
            },
        ),
        Paper(
            key="gan",
            title="Generative Adversarial Nets",
            authors="Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio",
            year=2014,
            source="arXiv:1406.2661",
            area="generative models",
            summary="a generator and a discriminator in a two-player game",
            presets={
                "gan_mnist_generator": 2_503_984,
                "gan_mnist_discriminator": 1_231_441,
                "gan_faces_generator": 83_250_304,
                "gan_faces_discriminator": 21_037_201,
                "gan_cifar10_generator": 89_395_072,
                "gan_cifar10_discriminator": 37_393_601,
                "gan_cifar10_conv_generator": 64_825_072,
                "gan_cifar10_conv_discriminator": 12_454_073,
                "dcgan_generator": 18_855_040,
                "dcgan_discriminator": 17_232_768,
            },
        ),
        Paper(
            key="gpt_2",
            title="Language Models are Unsupervised Multitask Learners",
            authors="Radford, Wu, Child, Luan, Amodei, Sutskever",
            year=2019,
            source="OpenAI technical report",
            area="language models",
            summary="a decoder Transformer that learns tasks from nothing but text",
            presets={
                "gpt2_small": 124_439_808,
                "gpt2_medium": 354_823_168,
                "gpt2_large": 774_030_080,
                "gpt2_xl": 1_557_611_200,
            },
        ),
        Paper(
            key="lora",
            title="LoRA: Low-Rank Adaptation of Large Language Models",
            authors="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen",
            year=2021,
            source="arXiv:2106.09685",
            area="language models",
            summary="a frozen model learns a new task by thin matrices beside its own",
            presets={},
        ),
        Paper(
            key="lstm",
            title="Long Short-Term Memory",
            authors="Hochreiter, Schmidhuber",
            year=1997,
            source="Neural Computation 9(8)",
            area="sequences",
            summary="gated recurrent cells that carry an error unchanged through time",
            presets={
                "zaremba_small": 4_651_600,
                "zaremba_medium": 19_775_200,
                "zaremba_large": 66_022_000,
                "adding_1997": 93,
                "multiplication_1997": 93,
                "temporal_order_6a": 156,
                "temporal_order_6b": 308,
                "reber_4x1": 264,
                "reber_3x2": 276,
                "continual_reber": 424,
                "continual_reber_1997": 360,
                "adding_lstm": 17_217,
                "adding_rnn": 4_353,
                "reber_lstm": 18_887,
            },
        ),
        Paper(
            key="mixture_of_experts",
            title="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
            authors="Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean",
            year=2017,
            source="arXiv:1701.06538",
            area="sequences",
            summary="thousands of small networks, of which a gate picks a few for each token",
            presets={
                "moe_4": 821_704_575,
                "moe_32": 851_093_375,
                "moe_256": 1_086_203_775,
                "moe_256_h": 1_086_220_159,
                "moe_1024_h": 1_892_312_959,
                "moe_4096_h": 5_116_684_159,
                "moe_34m": 5_939_704_703,
                "moe_143m": 5_996_876_671,
                "moe_16384_h": 17_303_475_872,
                "moe_65536_h": 68_893_546_144,
                "moe_131072_h": 137_680_131_744,
                "moe_1_wide": 821_700_479,
                "moe_1_deep": 821_700_479,
                "lstm_4x512": 821_704_575,
                "lstm_2048_512": 822_753_151,
            },
        ),
        Paper(
            key="resnet",
            title="Deep Residual Learning for Image Recognition",
            authors="He, Zhang, Ren, Sun",
            year=2015,
            source="arXiv:1512.03385",
            area="vision",
            summary="layers learn what to add to their input, so that depth helps",
            presets={
                "resnet18": 11_689_512,
                "resnet34": 21_797_672,
                "resnet50": 25_557_032,
                "resnet101": 44_549_160,
                "resnet152": 60_192_808,
                "resnet50_v1_5": 25_557_032,
                "resnet101_v1_5": 44_549_160,
                "resnet152_v1_5": 60_192_808,
                "plain18": 11_515_688,
                "plain34": 21_623_848,
                "resnet20": 269_722,
                "resnet32": 464_154,
                "resnet44": 658_586,
                "resnet56": 853_018,
                "resnet110": 1_727_962,
                "resnet1202": 19_421_274,
                "plain20": 269_722,
                "plain32": 464_154,
                "plain44": 658_586,
                "plain56": 853_018,
                "plain110": 1_727_962,
            },
        ),
        Paper(
            key="roberta",
            title="RoBERTa: A Robustly Optimized BERT Pretraining Approach",
            authors="Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov",
            year=2019,
            source="arXiv:1907.11692",
            area="language models",
            summary="BERT trained longer, on more text, without pairs, its masks drawn anew each time",
            presets={
                "roberta_base": 124_697_433,
                "roberta_large": 355_412_057,
            },
            builds_on=("bert",),
        ),
        Paper(
            key="switch_transformer",
            title="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
            authors="Fedus, Zoph, Shazeer",
            year=2021,
            source="arXiv:2101.03961",
            area="sequences",
            summary="a Transformer whose feed-forward layers are experts, one for each token",
            presets={
                "switch_decoder_base": 3_730_459_776,
                "switch_decoder_tiny": 2_649_600,
            },
            builds_on=("mixture_of_experts",),
        ),
        Paper(
            key="transformer",
            title="Attention Is All You Need",
            authors="Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin",
            year=2017,
            source="arXiv:1706.03762",
            area="sequences",
            summary="translation by attention alone, without recurrence or convolution",
            presets={
                "transformer_base": 63_045_632,
                "transformer_big": 214_171_648,
                "transformer_small": 7_568_384,
                "transformer_tiny": 248_512,
            },
        ),
        Paper(
            key="vae",
            title="Auto-Encoding Variational Bayes",
            authors="Kingma, Welling",
            year=2013,
            source="arXiv:1312.6114",
            area="generative models",
            summary="an encoder that guesses the posterior, trained through its own draws",
            presets={
                "vae_mnist": 815_824,
                "vae_frey": 349_560,
            },
        ),
        Paper(
            key="vit",
            title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
            authors="Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit, Houlsby",
            year=2020,
            source="arXiv:2010.11929",
            area="vision",
            summary="patches of an image as the words of a Transformer",
            presets={
                "vit_ti16": 5_717_416,
                "vit_s16": 22_050_664,
                "vit_s32": 22_878_952,
                "vit_b16": 86_567_656,
                "vit_b32": 88_224_232,
                "vit_l16": 304_326_632,
                "vit_l32": 306_535_400,
                "vit_h14": 632_045_800,
                "vit_r50_b16": 98_659_112,
            },
        ),
        Paper(
            key="vq_vae",
            title="Neural Discrete Representation Learning",
            authors="van den Oord, Vinyals, Kavukcuoglu",
            year=2017,
            source="arXiv:1711.00937",
            area="generative models",
            summary="images as grids of learnt codes, and a PixelCNN that writes new ones",
            presets={
                "vqvae_cifar10": 6_397_574,
                "vqvae_imagenet": 4_922_438,
                "vqvae_dmlab": 4_922_438,
                "vqvae_sonnet": 662_723,
                "pixelcnn_imagenet": 154_572_800,
            },
        ),
    ]
}


def find_preset(name: str) -> Paper:
    """The paper which defines this preset.

    Raises:
        ValueError: if no paper does; names the nearest presets.
    """
    for paper in PAPERS.values():
        if name in paper.presets:
            return paper
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.5)
    raise ValueError(f"no preset is called {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "; zoo.list_models() names them"))


def list_models(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell pattern, such as "resnet*", sorted."""
    return sorted(fnmatch.filter((name for paper in PAPERS.values() for name in paper.presets), pattern))
