"""docs/performance.md out of results/benchmarks/; `python docs/tables.py` writes it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "results" / "benchmarks"
HEAD = """# Performance

Made by `python docs/tables.py` from `results/benchmarks/`, whose files `python -m benchmarks <name> --record ...` writes: all sides in one process,
in turn, so that what else the machine does falls on all of them. Quartiles stand in brackets. No figure of a GPU stands here yet.
"""
PEERS = """## Beside peers

`python -m benchmarks peers`. A ratio below 1 is faster than the peer. Not slower: its upper quartile is 1 at most; not measured: the noise floor, a
second instance of the peer beside the first, leaves 0.95 to 1.05. "gradients" is a step without the optimizer. MiB: the most that tensors made in
one run of ours hold at a time, and the peer's. GFLOP/s of ours: the products that torch counts; its share is of a plain product of two matrices of
2048 in the same process, which a convolution may exceed: in fp32 it goes through another library.
"""
AIMS_HEAD = """## What was aimed at

The median ratio to each peer, on a CPU of two cores, both in use. Where an aim is missed: of a convolutional net both sides spend nearly all the time
in the same convolutions and batch norms, and only their layout and the optimizer are ours; of BERT and LoRA in the same matrix products;
nn.Transformer's fused inference, which is slow in bf16, is off where texts are padded, since it raises an error there (transformer_small), and used
where they are not (transformer_base). Not compared: denoising-diffusion-pytorch, whose U-Net has other blocks.
"""
AIMS = (  # cases, work, precision, peer (None: each), at most
    (("alexnet", "resnet18", "resnet50"), "step", "fp32", None, 0.90),
    (("alexnet", "resnet18", "resnet50"), "step", "bf16", None, 0.85),
    (("vit_s16", "transformer_base", "transformer_small", "gpt2_4x256"), "step", "fp32", None, 0.95),
    (("vit_s16", "transformer_base", "transformer_small", "gpt2_4x256"), "step", "bf16", None, 0.95),
    (("bert_mini",), "step", "fp32", "transformers (all places)", 0.95),
    (("bert_mini",), "step", "fp32", "transformers", 0.95),
    (("bert_mini",), "step", "bf16", "transformers (all places)", 0.95),
    (("bert_mini",), "step", "bf16", "transformers", 0.95),
    (("lora_bert",), "step", "fp32", None, 0.97),
    (("lora_bert",), "step", "bf16", None, 0.97),
    (("ddpm_small",), "step", "fp32", None, 0.97),
    (("ddpm_small",), "step", "bf16", None, 0.97),
    (("moe_32",), "gradients", "fp32", "Mixtral", 0.25),
    (("moe_32",), "gradients", "fp32", "Mixtral (grouped_mm)", 1.0),
    (("moe_32",), "gradients", "bf16", "Mixtral", 0.25),
    (("moe_32",), "gradients", "bf16", "Mixtral (grouped_mm)", 1.0),
    (("transformer_base", "transformer_small", "zaremba_medium"), "inference", "bf16", None, 0.50),
    (("gpt2_4x256",), "generation", "fp32", None, 0.80),
    (("gpt2_4x256",), "generation", "bf16", None, 0.80),
)
TRIED = (  # idea, expected, found
    (
        "attention as a plain product for bf16 on a CPU",
        "faster below about 512 tokens",
        "the backward pass of torch's fused attention is what costs: faster with it switched off, but scores are then reduced in bf16, with "
        "several times the error; not done, since it changes results",
    ),
    ("a loop over experts on contiguous rows instead of `grouped_mm`", "faster on a CPU", "slower with 32 experts; not done"),
    (
        "contiguous outputs of the LSTM before the softmax",
        "no difference",
        "in inference mode and bf16 several times faster: a linear layer copied its weight for each item of a transposed batch; done",
    ),
    ("files of a checkpoint written side by side, while the next one is put together", "1.3 instead of 1.45 of a plain save", "see Saving; done"),
    ("the largest file of a checkpoint first, its digest beside the next one", "1.15 instead of 1.3 of a plain save", "see Saving; done"),
    ("a step's records kept as they come and sorted at the log, one operator less for finite gradients", "10 us a step", "about that; done"),
    (
        "the steps of 1997's LSTM one by one without a gradient, then all together with it",
        "several times as fast",
        "as expected, since its gradient stops at what a step sees of the one before; done",
    ),
    ("looking up once what an objective has, and a cheaper test for finite gradients", "20 to 40 us a step", "about that; done"),
    (
        "frozen matrices in bf16 under `precision=bf16`",
        "the same numbers, less memory",
        "bit for bit the same losses (tests/test_frozen.py); done, as `trainer.frozen_precision`",
    ),
)


def quartiles(q: list[float], form: str = ".2f") -> str:
    return f"{q[1]:{form}} [{q[0]:{form}}, {q[2]:{form}}]"


def on(record: dict[str, Any]) -> str:
    repeats = f", {record['repeats']} repeats" if "repeats" in record else ""
    return f"{record['hardware']}, torch {record['torch']}{repeats}"


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    line = lambda cells: f"| {' | '.join(cells)} |"
    headings = list(headings)
    return "\n".join([line(headings), "|" + "---|" * len(headings), *map(line, rows)])


def records() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(what, its result, the record), the most threads first."""
    found = [read(file.stem) for file in sorted(FOLDER.glob("peers*.json"))]
    for record in sorted(found, key=lambda record: record["hardware"], reverse=True):
        yield from ((name, result, record) for name, result in record["results"].items())


def peers() -> str:
    rows = []
    for name, result, record in records():
        ratios = ", ".join(f"{peer} {quartiles(q)}" for peer, q in result["ratio_to"].items())
        rows.append((name, f"{result['milliseconds']['ours'][1]:.0f}", ratios, quartiles(result["noise_floor"]), result["verdict"],
                     *asked(result), on(record)))  # fmt: skip
    return table(["model, work, precision", "ms", "ratio to its peers", "noise floor", "verdict", "MiB", "GFLOP/s", "on"], rows)


def asked(result: dict[str, Any]) -> tuple[str, str]:
    """Memory, ours and the first peer's; operations a second and their share of a matrix product's."""
    memory, pace = "", ""
    if "peak_mib" in result:
        memory = f"{result['peak_mib']['ours']:.0f}, {result['peak_mib'][next(iter(result['ratio_to']))]:.0f}"
    if "gigaflop" in result:
        done = result["gigaflop"]["ours"] / (result["milliseconds"]["ours"][1] / 1e3)
        pace = f"{done:.0f} ({100 * done / result['matmul_gigaflops']:.0f} %)"
    return memory, pace


def aims() -> str:
    results, rows = {name: result for name, result, record in records() if "2 threads" in record["hardware"]}, []
    for cases, work, precision, only, most in AIMS:
        for case in cases:
            found = results.get(f"{case} {work} {precision}", {"ratio_to": {}})["ratio_to"]
            for peer, q in found.items():
                if only in (None, peer):
                    rows.append((f"{case} {work} {precision}", peer, f"{most:.2f}", quartiles(q), "yes" if q[1] <= most else "no"))
    return table(["model, work, precision", "peer", "at most", "found", "met"], rows)


def loop() -> str:
    found = read("trainer")
    more, noise = quartiles(found["trainer_minus_bare"], ".0f"), quartiles(found["noise_floor"], ".0f")
    words = f"A step of the trainer takes {more} us more than one by hand with the same features (noise {noise}; {on(found)})."
    if fastest := found.get("fastest_tenth"):
        words += f" Between the fastest tenths of their blocks, which nothing else disturbed, it is {fastest['trainer'] - fastest['bare']:.0f} us."
    if "lightning_minus_bare" in found:
        words += f" One of Lightning's Trainer with the same features takes {quartiles(found['lightning_minus_bare'], '.0f')} us more."
    return words


def images() -> str:
    found = read("data")
    ours, theirs = (quartiles(found["images_a_second"][name], ".0f") for name in ("ours", "torchvision"))
    words = f"{ours} JPEGs a second, torchvision's {theirs}: a ratio of {quartiles(found['ratio'])} ({found['workers']} workers; {on(found)})."
    if "resident_share" in found:
        batch, step = (quartiles(found["resident_milliseconds"][name], ".1f") for name in ("batch", "step"))
        words += (
            f" Images that live on the device: a batch of 128 of CIFAR's size, cropped, mirrored and normalised, takes {batch} ms, ResNet-20's step "
            f"on it {step} ms, a share of {quartiles(found['resident_share'])}."
        )
    return words


def quantiser() -> str:
    found = read("quantizer")
    return f"{quartiles(found['ratio'])} of the time of vector-quantize-pytorch (noise {quartiles(found['noise_floor'])}; {on(found)})."


def decoding() -> str:
    found = read("decoding")
    rows = [(name, quartiles(result["speedup"], ".1f"), quartiles(result["noise_floor"])) for name, result in found["results"].items()]
    return f"{on(found)}:\n\n" + table(["", "times as fast", "noise floor"], rows)


def saving() -> str:
    found = read("saving")
    return (
        f"A checkpoint of 256 MB, with digests and a manifest, takes {quartiles(found['ratio'])} of the time of one synced file by torch.save "
        f"(noise {quartiles(found['noise_floor'])}; {on(found)})."
    )


def startup() -> str:
    found = read("import")
    return f"{on(found)}:\n\n" + table(["command", "seconds"], [(f"`{name}`", quartiles(q)) for name, q in found["seconds"].items()])


def growth() -> str:
    found, keys = read("growth"), ("seconds", "flops", "kept")
    rows = [
        (name, f"{min(result['sizes'])} to {max(result['sizes'])}", *(str(result["exponents"].get(key, "")) for key in keys))
        for name, result in found["results"].items()
    ]
    told = (
        f"The exponent of a power of the size, of a step of a small GPT-2, of a layer of experts, and of data parallel ranks that share the "
        f"machine's cores and for which eight items each come to the batch ({on(found)}):\n\n"
    )
    return told + table(["size", "from, to", "seconds", "products that torch counts", "kept bytes"], rows) + "\n\n![growth](growth.png)"


SECTIONS = {
    "The loop": ("trainer", loop),
    "Images": ("data", images),
    "The quantiser": ("quantizer", quantiser),
    "Decoding": ("decoding", decoding),
    "Saving": ("saving", saving),
    "Until something happens": ("import", startup),
    "How cost grows": ("growth", growth),
}


def page() -> str:
    recorded = {title: section for title, section in SECTIONS.items() if (FOLDER / f"{section[0]}.json").exists()}
    others = [f"## {title}\n\n`python -m benchmarks {name}`. {tell()}" for title, (name, tell) in recorded.items()]
    tried = "## What was tried\n\n" + table(["idea", "expected", "found"], TRIED)
    return "\n\n".join([HEAD.rstrip(), PEERS.rstrip(), peers(), AIMS_HEAD.rstrip(), aims(), *others, tried]) + "\n"
