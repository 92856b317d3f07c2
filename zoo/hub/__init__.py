"""Models out of weights that lie somewhere, and into folders that others can use: safetensors, a config.json, a model card."""

import fnmatch
import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import zoo
from zoo.hub.card import card_of, record_of
from zoo.hub.places import Source, lookup
from zoo.hub.sources import CONFIG, WEIGHTS, WeightsError, build, target_of, written
from zoo.hub.transformers_folder import BUILDERS
from zoo.weights import shipped

__all__ = ["BUILDERS", "WeightsError", "create", "from_pretrained", "push_to_hub", "save_pretrained", "shipped"]


def from_pretrained(source: str | Path, network: str | None = None) -> nn.Module:
    """The model that these weights are of, in evaluation mode and the default dtype.

    Of transformers' folders it knows BERT and RoBERTa, with the head that the file has weights for, and GPT-2. Sentence embedders have no head,
    and often no pooler: `model.forward_features(tokens, segments, attend)` gives the hidden states (B, T, D). The vocabulary beside the weights
    is for zoo.data.wordpiece.WordPiece.from_file(folder / "vocab.txt").

    Args:
        source: a folder that `save_pretrained` wrote, or transformers; the id of one on the hub, "owner/name"; or the directory of a finished run.
        network: which one, of a run that trained several: "generator".

    Raises:
        WeightsError: if something is missing or damaged, or is a model that this zoo has not.
    """
    found = lookup(source)
    if len(found) > 1 or network is not None:
        names = [one.network for one in found]
        found = [one for one in found if one.network == network]
        if not found:
            raise WeightsError(f"{source} has the networks {', '.join(map(str, names))}: choose one by network=..., not {network!r}")
    (one,) = found
    if one.preset is None:
        raise WeightsError(f"{one.told} doesn't say what model it is of: zoo.create_model(<name>, weights=...) does")
    model = build(one.preset, one.arguments, one.told)
    _fill(model, one, "by config.json it should be")
    return _made_by(model, one.preset, one.arguments).eval()


def create(name: str, weights: str | Path, skip: Sequence[str], arguments: Mapping[str, Any]) -> nn.Module:
    """What `zoo.create_model` does with weights."""
    found = lookup(weights, name)
    fitting = [one for one in found if one.preset == name or _same_model(one, name)]
    if not fitting:
        held = " and ".join(written(one.preset, one.arguments) for one in found if one.preset)
        raise WeightsError(f"{found[0].told} has weights of {held}, which is no {name}: zoo.hub.from_pretrained builds what they are of")
    if len(fitting) > 1:
        raise WeightsError(f"{weights} has several networks that are {name}: zoo.hub.from_pretrained(..., network=...) takes one of them")
    (one,) = fitting
    arguments = {**_accepted(name, one), **arguments}
    model = _preset(name)(**arguments)
    if hasattr(model, "adapt_state"):
        try:
            one = Source(one.told, model.adapt_state(dict(one.state)))
        except ValueError as error:
            raise WeightsError(f"{one.told}: {error}") from None
    _fill(model, one, f"in {written(name, arguments)} it is", "; skip=['{layer}'] passes over it", skip)
    return _made_by(model, name, arguments).eval()


def save_pretrained(model: nn.Module, folder: str | Path, preset: str | None = None, run: str | Path | None = None, **arguments: Any) -> Path:
    """Writes model.safetensors, config.json and README.md, a model card; `from_pretrained` reads them, and `zoo.create_model(..., weights=folder)`.

    Args:
        preset: what made the model, "resnet50", or a class, "resnet.CifarResNet"; models of `zoo.create_model` and `from_pretrained` know it.
        run: the run directory that the weights are of; what evaluate.py found there goes into the card.
        arguments: those that the preset was called with; beside those that the model knows.

    Returns:
        The folder.

    Raises:
        WeightsError: if the preset with these arguments makes another model than this one, or the weights are not the run's.
    """
    from safetensors.torch import save_file

    from zoo.training.state import module_state

    preset, arguments = _maker(model, preset, arguments)
    state = module_state(model)
    with torch.device("meta"):
        made = build(preset, arguments, "save_pretrained")
    _fill(made, Source("this model", state), f"in {written(preset, arguments)} it is", "; give the preset and the arguments that made it")
    folder = Path(folder).expanduser()
    config = {
        "library": "paper-zoo",
        "version": zoo.__version__,
        "preset": preset,
        "arguments": arguments,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    record = None if run is None else _record(model, run)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / f".{WEIGHTS}", metadata={"format": "pt"})
    (folder / f".{WEIGHTS}").replace(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(card_of(config, record))
    return folder


def push_to_hub(
    model: nn.Module, repo_id: str, preset: str | None = None, run: str | Path | None = None, private: bool = False, **arguments: Any
) -> str:
    """Puts what `save_pretrained` writes into a repository of the hub, which is made if it isn't there; returns its address.

    Whose it is follows from the token that `hf auth login` or HF_TOKEN gave.

    Raises:
        WeightsError: as `save_pretrained`; and if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, preset, run, **arguments)
        try:
            api = HfApi()
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Weights, configuration and model card")
        except Exception as error:  # of several libraries: no token, no permission, no network
            raise WeightsError(f"{repo_id!r} could not be written to the hub ({type(error).__name__}: {str(error).splitlines()[0][:200]})") from None
    return str(address)


def _fill(model: nn.Module, source: Source, wanted: str, advice: str = "", skip: Sequence[str] = ()) -> None:
    """Copies every tensor, one that has several names from any of them; those whose name matches a pattern in `skip` stay as they are.

    Args:
        wanted: words between the shape of a tensor there and its shape here.
        advice: what to do where something doesn't fit; {layer} becomes a pattern of the names of the layer.

    Raises:
        WeightsError: names the first tensor that is missing, has another shape, or has no place.
    """
    ours, state = model.state_dict(keep_vars=True), source.state

    def refuse(what: str, name: str) -> NoReturn:
        layer = f"{name.rpartition('.')[0]}.*" if "." in name else name
        raise WeightsError(f"{source.told} has {what}{advice.format(layer=layer)}")

    skipped = lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in skip)
    same: dict[int, list[str]] = {}
    for name, value in ours.items():
        same.setdefault(id(value), []).append(name)
    pairs: list[tuple[Tensor, Tensor]] = []
    for names in same.values():
        if skipped(names[0]):
            continue
        given = next((name for name in names if name in state), None)
        if given is None:
            refuse(f"no weights for '{names[0]}'", names[0])
        if state[given].shape != ours[given].shape:
            refuse(f"'{given}' of shape {tuple(state[given].shape)}, but {wanted} {tuple(ours[given].shape)}", given)
        pairs.append((ours[given], state[given]))
    if extra := sorted(name for name in state if name not in ours and not skipped(name)):
        refuse(f"'{extra[0]}', for which the model has no place", extra[0])
    with torch.no_grad():
        for value, given in pairs:
            value.copy_(given)


def _preset(name: str) -> Any:
    module, _, name = target_of(name).rpartition(".")
    return getattr(importlib.import_module(module), name)


def _accepted(name: str, source: Source) -> dict[str, Any]:
    """The arguments of the source that the preset leaves open."""
    from zoo.signature import parameters

    return {key: value for key, value in source.arguments.items() if key in parameters(target_of(name))}


def _same_model(source: Source, name: str) -> bool:
    """Whether the preset makes what the source is of: the same class, and layer by layer the same strides, paddings, dropout and so on.
    A lone file may be of any."""
    if source.preset is None:
        return True
    with torch.device("meta"):
        theirs = build(source.preset, source.arguments, source.told)
        try:
            ours = _preset(name)(**_accepted(name, source))
        except (TypeError, ValueError):  # it takes other arguments
            return False
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


def _made_by(model: Any, preset: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Notes on the instance what made it, in plain types, so that the model can be pickled and copied as any other."""
    model.made_by = {"preset": preset, "arguments": dict(arguments)}
    return model


def _maker(model: nn.Module, preset: str | None, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Preset and arguments, as config.json can hold them."""
    known = {"preset": preset, "arguments": {}} if preset else getattr(model, "made_by", None)
    if known is None:
        raise WeightsError("nothing says which preset made this model: save_pretrained(model, folder, 'resnet50', num_classes=10)")
    arguments = {**known["arguments"], **arguments}
    try:
        return known["preset"], json.loads(json.dumps(dict(arguments)))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the arguments of {known['preset']} cannot be written into config.json: {error}") from None


def _record(model: nn.Module, run: str | Path) -> dict[str, Any] | None:
    """What evaluate.py found in the run, if its weights are the model's."""
    ours = model.state_dict()
    for one in lookup(run):
        if one.state.keys() == ours.keys() and all(torch.equal(value.cpu(), ours[name].cpu()) for name, value in one.state.items()):
            return record_of(Path(run).expanduser())
    raise WeightsError(f"the weights of this model are not those of the run {run}, whose numbers the card would give: leave run out")
