"""The run directory: one place a run, no clock in its name, so that the same command again finds it and goes on."""

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.config import trainer_defaults
from zoo.errors import ConfigError

# What may change when a run is resumed: how it runs, not what it computes.
CHANGEABLE = (
    r"run_dir|resume|expect(\..*)?|logger\..*|data\.(root|workers)|evaluation\..*|trainer\.\w*every"
    r"|trainer\.(device|parallel|expert_parallel|accumulate|keep|max_time|profile)"
)


def claim(cfg: Mapping[str, Any]) -> Path:
    """Makes the run directory ready for this configuration and writes config.yaml into it.

    Raises:
        ConfigError: if it holds a run with another configuration; shows the difference and a command that starts a new run.
    """
    import yaml

    from zoo.training.checkpoint import write_atomically

    folder = Path(cfg["run_dir"])
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir {folder} is a file: choose another name or run_dir")
    if cfg["resume"] == "never" and ((folder / "config.yaml").exists() or (folder / "checkpoints").exists()):
        older = next(p for n in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.old-{n}")).exists())
        folder.rename(older)
        print(f"the old run is now {older}")
    if (folder / "config.yaml").exists() and any((folder / begun).exists() for begun in ("metrics.jsonl", "checkpoints")):
        _refuse_changes(folder, read_config(folder), cfg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = "# The resolved configuration of this run.\n" + yaml.safe_dump(_plain(cfg), sort_keys=False)
        write_atomically(folder / "config.yaml", text.encode())  # a kill here must not cost the run its configuration
    except OSError as error:
        raise ConfigError(f"run_dir {folder} cannot be written: {error.strerror}") from None
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run was started with. Keys of the trainer that are younger than the run have their default values.

    Raises:
        ConfigError: if the folder holds no run.
    """
    import yaml

    file = Path(folder) / "config.yaml"
    try:
        cfg = yaml.safe_load(file.read_text())
    except OSError:
        raise ConfigError(f"{folder} is no run directory: it has no readable config.yaml") from None
    except yaml.YAMLError:
        cfg = None
    if not isinstance(cfg, dict):
        raise ConfigError(f"{file} is damaged: it is not a configuration")
    trainer = cfg.get("trainer")
    return {**cfg, "trainer": {**trainer_defaults(), **trainer}} if isinstance(trainer, dict) else cfg


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """key -> (old, new) for every value that may not change on resume."""
    before, after = dict(_flat("", _plain(old))), dict(_flat("", _plain(new)))
    keys = [key for key in {**before, **after} if not re.fullmatch(CHANGEABLE, key)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _refuse_changes(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        shown = ", ".join(f"{key} {was!r} -> {now!r}" for key, (was, now) in changed.items())
        first = next(iter(changed))
        label = re.sub(r"[^\w.-]+", "-", f"{first.split('.')[-1]}-{changed[first][1]}")
        fresh = _command("run_dir", f"{folder}-{label}") if _given("run_dir") else _command("name", f"{new['name']}-{label}")
        ways = f"a new run: {fresh} (with init={folder} it begins with these weights); or resume=never replaces it"
        raise ConfigError(f"{folder} holds a run with another configuration ({shown}); {ways}")


def _given(key: str) -> bool:
    return any(word.startswith(f"{key}=") for word in sys.argv[1:])


def _command(key: str, value: str) -> str:
    """This command with another value of a key."""
    words = [word for word in sys.argv[1:] if word != "train" and not word.startswith(f"{key}=")]
    program = ["python", sys.argv[0]] if sys.argv[0].endswith("train.py") else ["python", "-m", "zoo", "train"]
    return shlex.join([*program, *words, f"{key}={value}"])


def _plain(value: Any) -> Any:
    """As YAML gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def drop_after(file: Path, step: int) -> None:
    """Cuts metrics.jsonl back to what was logged up to `step`: a resumed run logs the later steps again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a line cut short by a kill
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    aside = file.with_name(f".{file.name}.tmp")
    aside.write_text("".join(kept))
    aside.replace(file)


def best_seen(folder: Path, monitor: str | None) -> float | None:
    """The best value of `trainer.monitor` that a run logged for its validation split; with a minus before the name, the lowest."""
    if not monitor or not (folder / "metrics.jsonl").is_file():
        return None
    name, best = f"valid/{monitor.removeprefix('-')}", min if monitor.startswith("-") else max
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return best((record[name] for record in records if record.get(name) is not None), default=None)  # null: it was not finite
