"""What `evaluate` and `sample` do: a run's own configuration, its weights, then numbers and pictures beside them."""

import contextlib
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from zoo import config, schema
from zoo.data.loader import sweep
from zoo.data.pairs import BOS, lines
from zoo.environment import environment
from zoo.errors import ConfigError
from zoo.evaluation import pictures
from zoo.evaluation.mistakes import classification_pictures
from zoo.evaluation.statistics import evaluate, extra_metrics, frozen
from zoo.evaluation.trained import Trained, load_trained, sibling
from zoo.evaluation.translation import samples_of, shortened, translations
from zoo.report import save_report
from zoo.run_directory import read_config
from zoo.schema import Key, unknown
from zoo.training.checkpoint import write_atomically
from zoo.training.distributed import World, joined
from zoo.training.precision import numerics
from zoo.training.seeds import mixed

SOURCE = {
    "run": Key(str, null=True),
    "which": Key(str, choices=("auto", "best", "ema", "raw")),
    "weights": Key(str, null=True),
    "layout": Key(str, null=True),
    "average": Key(int, low=2, null=True),
    "device": Key(str, choices=("auto", "cpu", "cuda")),
}
EVALUATE = {**SOURCE, "split": Key(str, choices=("test", "valid", "train")), "record": Key(str, null=True)}
SAMPLE = {**SOURCE, "n": Key(int, low=1), "seed": Key(int, low=0), "text": Key(str, null=True), "input": Key(str, null=True)}
DEFAULTS = {"run": None, "which": "auto", "weights": None, "layout": None, "average": None, "device": "auto"}

EVALUATE_HELP = """usage: evaluate run=<run directory> [key=value ...]

  python evaluate.py run=runs/resnet/quick                     final weights (the average, where there is one) on the test split
  python evaluate.py run=runs/resnet/quick which=best          auto | best | ema | raw
  python evaluate.py run=... average=5                         the mean of the last 5 checkpoints' weights (trainer.keep=5 keeps them)
  python evaluate.py run=... split=valid data.root=/data       split: test | valid | train; keys of the run may be overridden
  python evaluate.py paper=resnet/imagenet_resnet50 weights=resnet50.safetensors layout=torchvision
  python evaluate.py run=... record=results/mine.json          keep the numbers with all that is needed to believe them
"""
SAMPLE_HELP = """usage: sample run=<run directory> n=16 [key=value ...]

  python -m zoo sample run=runs/gan/quick n=64 seed=1          images: <run>/pictures/samples.png
  python -m zoo sample run=runs/lstm/quick n=2 length=300 text="The "     text: printed
  python -m zoo sample run=runs/transformer/quick text="4 May 1996"    a translation: printed, and a picture of its attention
  python -m zoo sample run=... input=lines.txt beam=8                  translations of a file's lines, line by line
"""


def evaluate_command(argv: list[str]) -> int:
    """Prints metrics, writes metrics.json and pictures into the run directory."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(EVALUATE_HELP, end="")
        return 0 if argv else 2
    own, rest = _split(argv, EVALUATE)
    options = schema.section("", {**DEFAULTS, "split": "test", "record": None, **own}, EVALUATE)
    with _trained(options, rest) as (trained, world):
        metrics, texts = _metrics(trained, world, options["split"])
        if not world.first:
            return 0
        folder = _folder(options, trained)
        result = _result(trained, options, metrics, texts, world)
        write_atomically(folder / "metrics.json", json.dumps(result, indent=1).encode())
        if options["record"]:
            Path(options["record"]).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(options["record"]), json.dumps(result, indent=1).encode())
        _print_table(trained, metrics, texts, options["split"])
        for path in [folder / "metrics.json", *_pictures(trained, world, folder, options["split"])]:
            print(path)
        if page := save_report(folder):
            print(page)
    return 0


def sample_command(argv: list[str]) -> int:
    """Draws from a generative model: a grid of images, or text."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(SAMPLE_HELP, end="")
        return 0 if argv else 2
    own, rest = _split(argv, SAMPLE)
    options = schema.section("", {**DEFAULTS, "n": 16, "seed": 0, "text": None, "input": None, **own}, SAMPLE)
    extra = dict(word.split("=", 1) for word in rest if "." not in word.split("=", 1)[0] and not word.startswith("paper="))
    rest = [word for word in rest if word.split("=", 1)[0] not in extra]
    with _trained(options, rest) as (trained, world):
        objective = trained.objective
        if hasattr(objective, "translate"):
            _translate(trained, world, options, _arguments(objective.translate, extra, ("source",)))
            return 0
        if options["input"] is not None:
            raise ConfigError(f"input=... is for models that translate; {trained.cfg['name']} does not")
        if not hasattr(objective, "sample"):
            raise ConfigError(f"{trained.cfg['name']} generates nothing: its objective has no sample()")
        arguments = _arguments(objective.sample, extra, ("n", "generator", "prompt")) | _prompt(options["text"], trained.data)
        generator = torch.Generator(world.device).manual_seed(options["seed"])
        with frozen(objective, trained.cfg["trainer"]["precision"], world.device):
            try:
                samples = objective.sample(options["n"], generator, **arguments)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        if samples.dtype.is_floating_point:
            print(pictures.save_picture(pictures.grid(samples), _folder(options, trained) / "pictures" / "samples.png"))
        else:
            for text in trained.data.decode(samples):
                print((options["text"] or "") + text, end="\n\n")
    return 0


def _translate(trained: Trained, world: World, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Prints the translation of a text, or of a file line by line; of a text also a picture of the attention, where the paper draws one."""
    if (options["text"] is None) == (options["input"] is None):
        raise ConfigError(f'{trained.cfg["name"]} translates: give text="a sentence" or input=<file of lines>')
    texts = [options["text"]] if options["input"] is None else lines(Path(options["input"]).expanduser())
    with frozen(trained.objective, trained.cfg["trainer"]["precision"], world.device):
        try:
            found, cut = translations(trained.objective, trained.data, texts, **arguments)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for text in found:
            print(text)
        if cut:
            print(f"{cut} of {len(texts)} texts were cut to {trained.data.facts['max_length']} tokens (data.max_length)", file=sys.stderr)
        if options["text"]:
            for path in _attention(trained, options["text"], found[0], _folder(options, trained) / "pictures"):
                print(path, file=sys.stderr)


def _attention(trained: Trained, source: str, target: str, folder: Path) -> list[Path]:
    """What the paper draws of a sentence and its translation: `attention_maps` of the `pictures.py` beside its `model.py`."""
    module, data = sibling(trained.cfg, "pictures"), trained.data
    if not hasattr(module, "attention_maps"):
        return []
    device = next(trained.objective.parameters()).device
    x, y = (shortened(data.encode(text), data.facts["max_length"]).to(device) for text in (source, target))
    tokens = [[*(text or "_" for text in data.decode(ids[:-1, None])), "<eos>"] for ids in (x, y)]
    begin = torch.full_like(y[:1], BOS)
    maps = module.attention_maps(trained.objective.model, x[None], torch.cat([begin, y])[None, :-1], *tokens)
    return [pictures.save_picture(picture, folder / f"{name}.png") for name, picture in maps.items()]


def _split(argv: list[str], keys: Mapping[str, Key]) -> tuple[dict[str, str], list[str]]:
    """The command's own key=value words, read as they stand (a text may hold commas and umlauts), and all others."""
    own, rest = {}, []
    for word in argv:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"cannot read {word!r}: write key=value")
        if key in keys:
            own[key] = _number(value) if keys[key].type is int else value
        else:
            rest.append(word)
    return own, rest


def _number(text: str) -> Any:
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


@contextlib.contextmanager
def _trained(options: Mapping[str, Any], rest: list[str]) -> Iterator[tuple[Trained, World]]:
    """The model of run=..., or of paper=... weights=..."""
    folder = Path(options["run"]) if options["run"] else None
    if folder:
        cfg = _overridden(read_config(folder), rest)
    elif options["weights"] and any(word.startswith("paper=") for word in rest):
        cfg = config.compose(rest)
    else:
        raise ConfigError("give run=<run directory>, or paper=<name> weights=<file.safetensors>")
    with joined(options["device"], "ddp") as world, numerics(cfg["trainer"]["precision"], cfg["trainer"]["deterministic"]):
        yield load_trained(cfg, world, folder, options["which"], options["weights"], options["layout"], options["average"]), world


def _overridden(cfg: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A run's configuration with overrides, checked: only zoo's own targets, unless the command line names another package."""
    from omegaconf import OmegaConf

    for word in overrides:
        if "." not in word.split("=", 1)[0] and not word.startswith("init="):  # an adapter's base may have moved
            raise unknown(word.split("=", 1)[0], EVALUATE)
    with config.one_line_errors():
        merged = OmegaConf.merge(OmegaConf.create(cfg), OmegaConf.from_dotlist(overrides))
        return schema.check(OmegaConf.to_container(merged, resolve=True), config.foreign_packages(overrides))


def _metrics(trained: Trained, world: World, name: str) -> tuple[dict[str, float], dict[str, str]]:
    cfg, split = trained.cfg, getattr(trained.data, name)
    if split is None:
        there = [n for n in ("train", "valid", "test") if getattr(trained.data, n) is not None]
        raise ConfigError(f"split={name}: this data set has only {', '.join(there)}")
    metrics = evaluate(trained.objective, split, cfg["data"]["batch_size"], world, cfg["seed"], cfg["trainer"]["precision"])
    texts = {}
    for section in cfg["evaluation"].values():
        for all_, some in zip((metrics, texts), extra_metrics(section, trained.objective, trained.data, cfg["seed"], cfg["trainer"]["precision"])):
            all_ |= some
    return metrics, texts


def _result(
    trained: Trained, options: Mapping[str, Any], metrics: Mapping[str, float], texts: Mapping[str, str], world: World
) -> dict[str, Any]:
    """Everything that a number needs in order to be believed."""
    cfg = trained.cfg
    computing = {key: value for key, value in cfg.items() if key not in ("expect", "logger", "run_dir", "resume")}
    computing["data"] = {key: value for key, value in cfg["data"].items() if key != "root"}  # where it lies changes nothing
    text = json.dumps(computing, sort_keys=True)
    return {
        "name": cfg["name"],
        "metrics": dict(metrics),
        **({"texts": dict(texts)} if texts else {}),
        "split": options["split"],
        "data": cfg["data"]["_target_"],
        "weights": trained.weights,
        "step": trained.step,
        "partial": trained.partial,
        "paper": cfg["expect"],
        "seed": cfg["seed"],
        "seconds": _seconds(Path(options["run"])) if options["run"] else None,
        "command": " ".join(["python", *sys.argv]),
        "config": computing,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "environment": environment(world.device),
        "trained_on": _trained_on(Path(options["run"])) if options["run"] else None,
    }


def _seconds(folder: Path) -> float | None:
    """Training time so far, over all resumptions."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return next((record["seconds"] for line in reversed(lines) if "seconds" in (record := json.loads(line))), None)


def _trained_on(folder: Path) -> dict[str, Any] | None:
    file = folder / "environment.json"
    return json.loads(file.read_text()) if file.exists() else None


def _print_table(trained: Trained, metrics: Mapping[str, float], texts: Mapping[str, str], split: str) -> None:
    expect = trained.cfg["expect"] or {}
    print(f"{trained.cfg['name']}, {split} split; weights: {trained.weights}{'; PARTIAL: the run is not finished' if trained.partial else ''}")
    width = max(map(len, metrics), default=0)
    for key, value in metrics.items():
        paper = f"   paper: {expect['paper']:g} ({expect['source']})" if expect.get("metric") == key else ""
        print(f"  {key:<{width}} {value:>12.4f}{paper}")
    for key, text in texts.items():
        print(f"  {key}: {text}")
    for note in trained.data.notes:
        print(f"  {note}")


def _pictures(trained: Trained, world: World, folder: Path, split: str) -> list[Path]:
    objective, cfg, made = trained.objective, trained.cfg, []
    target = folder / "pictures"
    if (folder / "metrics.jsonl").exists():
        made.append(pictures.curves(folder))
    generator = torch.Generator(world.device).manual_seed(mixed(cfg["seed"], -3))
    with frozen(objective, cfg["trainer"]["precision"], world.device):
        if hasattr(objective, "predict"):
            made += classification_pictures(objective, trained.data, getattr(trained.data, split), cfg["data"]["batch_size"], target, world.device)
        if hasattr(objective, "sample"):
            made.append(_samples(trained, generator, target))
        if hasattr(objective, "translate"):
            made += _translations(trained, split, target)
        drawn = objective.pictures(_first_batch(trained, split, world.device), generator) if hasattr(objective, "pictures") else {}
        drawn |= _of_the_paper(trained, split, world.device)
    return made + [pictures.save_picture(picture, target / f"{name}.png") for name, picture in drawn.items()]


def _of_the_paper(trained: Trained, split: str, device: torch.device) -> dict[str, torch.Tensor]:
    """What the model's own paper draws: `pictures(model, images, shown)` of the `pictures.py` beside its `model.py`."""
    module = sibling(trained.cfg, "pictures")
    if not hasattr(module, "pictures") or not hasattr(getattr(trained.data, split), "normaliser"):
        return {}
    images = _first_batch(trained, split, device)["image"]
    return module.pictures(trained.objective.model, images, getattr(trained.data, split).normaliser.inverse(images.clone()))


def _translations(trained: Trained, split: str, target: Path) -> list[Path]:
    """The first pairs of a split beside their translations, and the attention of the first."""
    found = samples_of(trained.objective, trained.data, split, 16)
    target.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(f"source       {x}\nreference    {y}\ntranslation  {ours}" for x, y, ours in found)
    (target / "translations.txt").write_text(text + "\n", encoding="utf-8")
    return [target / "translations.txt", *_attention(trained, found[0][0], found[0][2], target)]


def _samples(trained: Trained, generator: torch.Generator, target: Path) -> Path:
    samples = trained.objective.sample(64 if trained.data.decode is None else 4, generator)
    if samples.dtype.is_floating_point:
        return pictures.save_picture(pictures.grid(samples), target / "samples.png")
    target.mkdir(parents=True, exist_ok=True)
    (target / "samples.txt").write_text("\n\n".join(trained.data.decode(samples)) + "\n", encoding="utf-8")
    return target / "samples.txt"


def _first_batch(trained: Trained, split: str, device: torch.device) -> dict[str, torch.Tensor]:
    data = getattr(trained.data, split)
    return next(batch for _, _, batch in sweep(data, min(trained.cfg["data"]["batch_size"] or 64, 64), device))


def _arguments(function: Any, extra: Mapping[str, str], supplied: tuple[str, ...]) -> dict[str, Any]:
    """The options of objective.sample or objective.translate, read by its signature."""
    accepted = {name: p for name, p in inspect.signature(function).parameters.items() if name not in supplied}
    arguments = {}
    for name, value in extra.items():
        if name not in accepted:
            raise unknown(name, [*accepted, *SAMPLE])
        wanted = schema.annotation_key(schema.Parameter(_annotation(accepted[name]), False)) or Key(str)
        arguments[name] = wanted.read(name, _literal(value))
    return arguments


def _prompt(text: str | None, data: Any) -> dict[str, torch.Tensor]:
    if text is None:
        return {}
    if data.encode is None:
        raise ConfigError("text=... is for models of text")
    return {"prompt": data.encode(text)}


def _annotation(parameter: inspect.Parameter) -> str:
    return inspect.formatannotation(parameter.annotation) if parameter.annotation is not inspect.Parameter.empty else ""


def _literal(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _folder(options: Mapping[str, Any], trained: Trained) -> Path:
    folder = Path(options["run"]) if options["run"] else Path("runs") / "evaluated" / trained.cfg["name"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
