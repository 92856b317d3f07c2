"""Which configuration keys exist, and what their values may be. Nothing here imports torch: a wrong command line is answered at once."""

import difflib
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConfigError
from zoo.signature import Parameter, check_role, own_packages, parameters

TORCH_TARGETS = ("torch.nn.Linear", "torch.nn.LSTM", "torch.nn.Transformer", "torch.nn.Identity")


@dataclass(frozen=True)
class Key:
    """What the value of a key may be: its type, its range (low and high included, above excluded), its choices."""

    type: type
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    null: bool = False

    def read(self, name: str, value: Any) -> Any:
        """Returns the value in the key's type, or raises ConfigError."""
        if value is None:
            if self.null:
                return None
            raise ConfigError(f"{name} needs a value: {self.expected()}")
        value = _convert(value, self.type)
        if value is None or not self._in_range(value):
            raise ConfigError(f"{name} must be {self.expected()}")
        return value

    def _in_range(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def expected(self) -> str:
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            text = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list", dict: "a map"}[self.type]
            bounds = {"from": self.low, "to": self.high, "above": self.above, "below": self.below}
            text += "".join(f" {word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        return text + (" or null" if self.null else "")


def _convert(value: Any, wanted: type) -> Any:
    """The value as `wanted`, or None where it isn't one. 1e3 is a whole number; true is not."""
    if wanted is bool or isinstance(value, bool):
        return value if isinstance(value, bool) and wanted is bool else None
    if wanted is int and isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if wanted is float and isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    if wanted is str:
        return str(value) if isinstance(value, int | float) else value if isinstance(value, str) and value else None
    return value if isinstance(value, wanted) else None


WHOLE = Key(int, low=1)
RATE = Key(float, low=0)
FRACTION = Key(float, above=0, below=1)

TRAINER = {
    "steps": Key(int, low=0),
    "log_every": WHOLE,
    "eval_every": Key(int, low=1, null=True),
    "save_every": Key(int, low=1, null=True),
    "draw_every": Key(int, low=1, null=True),
    "keep": WHOLE,
    "monitor": Key(str, null=True),
    "precision": Key(str, choices=("fp64", "fp32", "tf32", "bf16", "fp16")),
    "frozen_precision": Key(str, choices=("bf16", "fp16"), null=True),
    "parallel": Key(str, choices=("none", "ddp", "fsdp")),
    "expert_parallel": Key(bool),
    "accumulate": WHOLE,
    "clip": Key(float, above=0, null=True),
    "ema": Key(float, above=0, below=1, null=True),
    "compile": Key(bool),
    "channels_last": Key(bool),
    "sync_batch_norm": Key(bool),
    "device": Key(str, choices=("auto", "cpu", "cuda")),
    "deterministic": Key(bool),
    "nonfinite": Key(str, choices=("stop", "skip")),
    "profile": Key(int, low=1, null=True),
    "max_time": Key(float, above=0, null=True),
}
DATA = {"batch_size": Key(int, low=1, null=True), "batch_tokens": Key(int, low=1, null=True), "workers": Key(int, low=0), "root": Key(str, null=True)}
FACTS = {"num_classes": WHOLE, "image_size": WHOLE, "channels": WHOLE, "vocab_size": Key(int, low=1, null=True)}

ADAM = {"lr": RATE, "betas": Key(list), "eps": RATE, "weight_decay": RATE, "decay": Key(str, choices=("all", "matrices"))}
OPTIMIZERS = {
    "sgd": {
        "lr": RATE,
        "momentum": Key(float, low=0, below=1),
        "nesterov": Key(bool),
        "lr_in_momentum": Key(bool),
        "weight_decay": RATE,
        "decay": ADAM["decay"],
    },
    "adam": ADAM,
    "adamw": ADAM,
    "adagrad": {key: ADAM[key] for key in ("lr", "eps", "weight_decay", "decay")},
}

WARMUP = {
    "warmup": Key(float, low=0),
    "warmup_start": Key(float, low=0, high=1),
    "warmup_shape": Key(str, choices=("linear", "constant")),
    "momentum": Key(dict),
}
SCHEDULES = {
    "constant": {},
    "step": {"every": WHOLE, "gamma": FRACTION},
    "multistep": {"milestones": Key(list), "gamma": FRACTION},
    "exponential": {"gamma": FRACTION, "floor": RATE},
    "plateau": {"factor": FRACTION, "patience": WHOLE, "min_lr": RATE},
    "cosine": {"floor": RATE},
    "linear": {"floor": RATE},
    "inverse_sqrt": {"d_model": WHOLE},
    "epoch_decay": {"after": Key(int, low=0), "gamma": FRACTION},
}
REQUIRED = {
    "step": ("every", "gamma"),
    "multistep": ("milestones", "gamma"),
    "exponential": ("gamma",),
    "plateau": ("factor", "patience"),
    "inverse_sqrt": ("d_model", "warmup"),
    "epoch_decay": ("after", "gamma"),
}
MOMENTUM = {"start": Key(float, low=0, below=1), "end": Key(float, low=0, below=1), "updates": WHOLE}

LOGGERS = {
    "csv": {},
    "tensorboard": {},
    "wandb": {"project": Key(str), "entity": Key(str, null=True), "mode": Key(str, choices=("online", "offline"))},
}
EXPECT = {"metric": Key(str), "paper": Key(float), "source": Key(str), "tolerance": Key(float, low=0, null=True), "budget": Key(str)}
TOP = {
    "name": Key(str),
    "seed": Key(int, low=0, high=2**31 - 1),
    "run_dir": Key(str),
    "resume": Key(str),
    "init": Key(str, null=True),
    "init_skip": Key(list),
    "model": Key(dict),
    "objective": Key(dict),
    "data": Key(dict),
    "optim": Key(dict),
    "schedule": Key(dict),
    "trainer": Key(dict),
    "evaluation": Key(dict, null=True),
    "logger": Key(dict),
    "expect": Key(dict, null=True),
}


def check(cfg: Mapping[str, Any], foreign: Iterable[str] = ()) -> dict[str, Any]:
    """Checks a resolved configuration and returns it with every value in its key's type.

    Args:
        foreign: packages other than zoo that the command line itself named in a `_target_`.

    Raises:
        ConfigError: one sentence that names the key and, for an unknown one, the nearest valid keys.
    """
    for key in cfg:
        if key == "paper":  # Hydra puts a file there that does not say where it belongs
            raise ConfigError("the paper's file is no map of keys for the whole configuration: its first line must be '# @package _global_'")
        if key not in TOP:
            inside = [f"{name}.{key}" for name, values in cfg.items() if isinstance(values, Mapping) and key in values]
            raise ConfigError(f"unknown key '{key}'; did you mean {' or '.join(inside)}?") if inside else unknown(key, [*TOP, "paper"])
    cfg = {**{key: {} for key in ("model", "objective", "data", "optim", "schedule", "evaluation")}, **cfg}
    trainer = section("trainer", cfg.get("trainer"), TRAINER, required=TRAINER)
    if cfg.get("name") is None and not cfg["model"]:
        raise ConfigError("no paper chosen: give paper=<name>; python train.py alone lists them")
    cfg = section("", {**cfg, "trainer": trainer}, TOP, required=("name", "seed", "run_dir", "resume", "logger"))
    check_name(cfg["name"])
    cfg["logger"] = named("logger", cfg["logger"], LOGGERS)
    cfg["expect"] = section("expect", cfg["expect"], EXPECT, required=("metric", "paper", "source")) if cfg.get("expect") else None
    if not cfg["model"] or not cfg["data"] or not cfg["objective"]:
        missing = next(key for key in ("model", "data", "objective") if not cfg[key])
        raise ConfigError(f"{missing} is empty: choose a paper (python train.py lists them) or give {missing}._target_")
    turns = _check_targets(cfg, tuple(foreign))
    for turn in turns:
        check_optim(by_turn(cfg["optim"], turn, turns, "optim"))
        schedule = check_schedule(by_turn(cfg["schedule"], turn, turns, "schedule"))
        if schedule["name"] == "plateau" and not (cfg["trainer"]["monitor"] and cfg["trainer"]["eval_every"]):
            raise ConfigError("schedule.name=plateau watches a metric: set trainer.monitor and trainer.eval_every")
    frozen, precision = cfg["trainer"]["frozen_precision"], cfg["trainer"]["precision"]
    if frozen and frozen != precision:
        raise ConfigError(f"trainer.frozen_precision={frozen} needs trainer.precision={frozen}, in which they are used anyway, not {precision}")
    _check_shares(cfg)
    return cfg


def check_name(name: str) -> None:
    """Refuses a name that leads out of the folder of runs or cannot be a path."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name.split("/"):
        raise ConfigError(f"name must be letters, digits, '_', '-', '.' and '/', not {name!r}")


def section(name: str, values: Any, keys: Mapping[str, Key], required: Iterable[str] = ()) -> dict[str, Any]:
    """Reads one section of the configuration: unknown and missing keys are refused, values converted."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a map of keys, not {values!r}")
    for key in values:
        if key not in keys:
            raise unknown(_join(name, key), [_join(name, k) for k in keys])
    for key in required:
        if key not in values:
            raise ConfigError(f"{_join(name, key)} is missing: give {keys[key].expected()}")
    return {key: keys[key].read(_join(name, key), value) for key, value in values.items()}


def named(name: str, values: Any, choices: Mapping[str, Mapping[str, Key]], required: Mapping[str, Iterable[str]] = {}) -> dict[str, Any]:
    """Reads a section whose `name` decides which other keys it has."""
    choice = Key(str, choices=tuple(choices))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a map of keys, not {values!r}")
    chosen = choice.read(f"{name}.name", values.get("name"))
    others = {key for keys in choices.values() for key in keys} - {"name", *choices[chosen]}
    if foreign := [key for key in values if key in others]:
        remedy = " ".join(f"~{name}.{key}" for key in foreign)
        raise ConfigError(f"{name}.{foreign[0]} does not go with {name}.name={chosen}; this leaves it out: {remedy}")
    return section(name, values, {"name": choice, **choices[chosen]}, ("name", *required.get(chosen, ())))


def unknown(key: str, valid: Iterable[str]) -> ConfigError:
    """The error for a key that nothing reads, with the nearest valid ones."""
    valid = list(valid)
    near = difflib.get_close_matches(key, valid, n=3, cutoff=0.6)
    likeness = {name: difflib.SequenceMatcher(None, name, key).ratio() for name in near}
    if near := [name for name in near if likeness[name] > likeness[near[0]] - 0.1]:
        return ConfigError(f"unknown key '{key}'; did you mean {' or '.join(near)}?")
    return ConfigError(f"unknown key '{key}'; valid here: {', '.join(sorted(valid)) or 'none'}")


def by_turn(values: Mapping[str, Any], turn: str, turns: Iterable[str], name: str) -> dict[str, Any]:
    """The section as one turn sees it: a map whose keys are turns stands for one value a turn."""
    chosen = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and set(value) != set(MOMENTUM):  # a momentum ramp is the one map that isn't by turn
            for given in value:
                if given not in turns:
                    raise unknown(f"{name}.{key}.{given}", [f"{name}.{key}.{t}" for t in turns])
            if turn not in value:
                raise ConfigError(f"{name}.{key} has no value for the turn '{turn}'")
            value = value[turn]
        chosen[key] = value
    return chosen


def check_optim(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what one turn's optimizer gets."""
    optim = named("optim", values, OPTIMIZERS, {name: ("lr",) for name in OPTIMIZERS})
    if "betas" in optim:
        betas = optim["betas"]
        if len(betas) != 2:
            raise ConfigError("optim.betas must be two numbers such as [0.9, 0.999]")
        optim["betas"] = tuple(Key(float, low=0, below=1).read("optim.betas", beta) for beta in betas)
    if optim.get("nesterov") and not optim.get("momentum"):
        raise ConfigError("optim.nesterov needs optim.momentum above 0")
    return optim


def check_schedule(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what one turn's schedule gets."""
    schedule = named("schedule", values, {name: {**keys, **WARMUP} for name, keys in SCHEDULES.items()}, REQUIRED)
    if schedule.get("warmup", 0) >= 1 or schedule["name"] == "inverse_sqrt":
        schedule["warmup"] = Key(int, low=1).read("schedule.warmup", schedule["warmup"])  # below 1 it is a share of all updates
    if "momentum" in schedule:
        schedule["momentum"] = section("schedule.momentum", schedule["momentum"], MOMENTUM, MOMENTUM)
    if "milestones" in schedule:
        schedule["milestones"] = [WHOLE.read("schedule.milestones", m) for m in schedule["milestones"]]
    return schedule


def _check_targets(cfg: dict[str, Any], foreign: tuple[str, ...]) -> tuple[str, ...]:
    """Checks everything that has a `_target_`; returns the names of the sub-networks, which are the turns."""
    own = {**DATA, **FACTS}
    cfg["data"] = check_call("data", cfg["data"], foreign, supplied=("seed",), own=own)  # first: the models' sizes are taken from here
    _check_batch(cfg["data"])
    alone = "_target_" in cfg["model"]
    networks = {"model": cfg["model"]} if alone else cfg["model"]
    networks = {name: check_call("model" if alone else f"model.{name}", values, foreign) for name, values in networks.items()}
    cfg["model"] = networks["model"] if alone else networks
    cfg["objective"] = check_call("objective", cfg["objective"], foreign, supplied=tuple(networks))
    cfg["evaluation"] = {name: values for name, values in (cfg["evaluation"] or {}).items() if values is not None}  # null leaves one out
    for name, values in cfg["evaluation"].items():
        every = {"every": Key(int, low=1, null=True)}
        supplied = ("objective", "data", "generator")
        cfg["evaluation"][name] = check_call(f"evaluation.{name}", values, foreign, supplied, own=every)
    return tuple(networks)


def _check_batch(data: dict[str, Any]) -> None:
    """A batch is so many items, or, where the data set can plan it, so many tokens."""
    data.setdefault("batch_size", None)
    tokens = data.get("batch_tokens")
    if tokens and data["_target_"].startswith("zoo.") and "batch_tokens" not in parameters(data["_target_"]):
        raise ConfigError(f"data.batch_tokens is for sets of pairs of sentences, not {data['_target_']}: give data.batch_size")
    if tokens and data["batch_size"]:
        raise ConfigError("data.batch_size and data.batch_tokens are both given: set one of them to null")
    if not tokens and not data["batch_size"]:
        raise ConfigError("data.batch_size is missing: give the number of items of one step over all ranks")


def check_call(name: str, values: Any, foreign: tuple[str, ...], supplied: tuple[str, ...] = (), own: Mapping[str, Key] = {}) -> dict[str, Any]:
    """Checks `_target_` and the arguments beside it against the target's signature.

    Args:
        supplied: arguments that the code gives, not the configuration.
        own: keys that stand in this section but are not for the target, unless its signature names them.
    """
    if not isinstance(values, Mapping) or "_target_" not in values:
        raise ConfigError(f"{name} needs a _target_, such as zoo.papers.resnet.resnet20")
    target = values["_target_"]
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{name}._target_ must be a dotted name, not {target!r}")
    package = target.split(".")[0]
    if target in TORCH_TARGETS:
        return dict(values)  # the call itself checks the arguments
    if package in (*sys.stdlib_module_names, "torch", "numpy", "joblib") and not target.startswith("torch.nn."):
        raise ConfigError(f"{name}._target_ {target!r} is no part of an experiment: name a class or function of zoo or of your own")
    if package in foreign or package in own_packages():
        return dict(values)
    if package != "zoo":
        allowed = f"allow it by ZOO_PACKAGES={package} in the environment, or by {name}._target_={target} on the command line"
        raise ConfigError(f"{name}._target_ {target!r} lies outside zoo: {allowed}")
    try:
        check_role(name.split(".")[0], target)
        accepted = {key: p for key, p in parameters(target).items() if key not in supplied}
    except ConfigError as error:
        raise ConfigError(f"{name}.{error}") from None
    keys = {key: annotation_key(p) for key, p in accepted.items()}
    read = {"_target_": target}
    for key, value in values.items():
        if key == "_target_":
            continue
        if key not in keys and key not in own:
            raise unknown(f"{name}.{key}", [f"{name}.{k}" for k in (*keys, *own)])
        wanted = own.get(key) or keys.get(key)
        read[key] = wanted.read(f"{name}.{key}", value) if wanted else value
    for key, parameter in accepted.items():
        if parameter.required and key not in read:
            raise ConfigError(f"{name}.{key} is missing: {target} needs it")
    return read


def annotation_key(parameter: Parameter) -> Key | None:
    """The key that an annotation such as `int`, `float | None` or `Literal["a", "b"]` stands for; None where it isn't plain."""
    text = parameter.annotation
    null = bool(re.search(r"\|\s*None$", text))
    text = re.sub(r"\s*\|\s*None$", "", text)
    literal = re.fullmatch(r"Literal\[(.*)\]", text)
    if literal:
        return Key(str, choices=tuple(part.strip(" '\"") for part in literal.group(1).split(",")), null=null)
    if re.match(r"(list|tuple|Sequence)\b", text) and "|" not in text:
        return Key(list, null=null)
    plain = {"int": int, "float": float, "bool": bool, "str": str}.get(text)
    return Key(plain, null=null) if plain else None


def _check_shares(cfg: dict[str, Any]) -> None:
    """The global batch must divide into equal micro-batches."""
    ranks, accumulate = int(os.environ.get("WORLD_SIZE", 1)), cfg["trainer"]["accumulate"]
    if ranks > 1 and cfg["trainer"]["parallel"] == "none":
        raise ConfigError(f"trainer.parallel=none cannot use {ranks} ranks: choose ddp or fsdp")
    if ranks > 1 and cfg["trainer"]["parallel"] == "fsdp" and cfg["trainer"]["precision"] == "fp16":
        raise ConfigError("trainer.precision=fp16 scales gradients, which trainer.parallel=fsdp does not support: choose bf16 or ddp")
    if ranks > 1 and cfg["trainer"]["expert_parallel"] and cfg["trainer"]["parallel"] != "ddp":
        raise ConfigError(f"trainer.expert_parallel goes with trainer.parallel=ddp, not {cfg['trainer']['parallel']}")
    if ranks > 1 and cfg["trainer"]["expert_parallel"] and cfg["trainer"]["precision"] == "fp16":
        raise ConfigError("trainer.precision=fp16 scales gradients, which trainer.expert_parallel does not support: choose bf16")
    size = cfg["data"]["batch_size"]
    if size and size % (ranks * accumulate):
        raise ConfigError(f"data.batch_size {size} does not divide into {ranks} ranks x trainer.accumulate {accumulate} micro-batches")


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
