"""The loop, top to bottom: build, resume, then step by step forward, backward, update, average, log, evaluate, save."""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.loader import share, stream
from zoo.errors import ConfigError, NoCheckpointError
from zoo.evaluation.progress import draw
from zoo.evaluation.statistics import evaluate, extra_metrics
from zoo.run_directory import claim
from zoo.training import checkpoint as checkpoints
from zoo.training import state
from zoo.training.buffers import Buffers
from zoo.training.build import build_data, build_objective, check_fit, check_token_batches
from zoo.training.distributed import World, joined, shard, share_experts, synchronise_batch_norm
from zoo.training.ema import Average
from zoo.training.init import in_words, start_from, weights_file
from zoo.training.outcome import plan_in_words, save_beside, write_environment, write_report, write_weights
from zoo.training.player import Player
from zoo.training.precision import autocast, lighten, numerics
from zoo.training.recorder import Recorder, on_device
from zoo.training.seeds import mixed
from zoo.training.signals import Stop, stop_signals
from zoo.training.throughput import iteration_work, profiler


def run(cfg: Mapping[str, Any]) -> int:
    """Trains what the checked configuration says; returns the exit code: 0, or 128 + the signal's number after a stop that saved."""
    options = cfg["trainer"]
    joining = joined(options["device"], options["parallel"], options["expert_parallel"])
    with joining as world, numerics(options["precision"], options["deterministic"]):
        with stop_signals(world, options["max_time"]) as stop:
            if world.first:
                claim(cfg)
            world.barrier()
            with contextlib.closing(Trainer(cfg, world)) as trainer:
                return trainer.train(stop)


class Trainer:
    """One run, from its configuration to its last step."""

    def __init__(self, cfg: Mapping[str, Any], world: World):
        self.cfg, self.world, self.options = cfg, world, cfg["trainer"]
        self.folder, self.step, self.best, self.seconds = Path(cfg["run_dir"]), 0, None, 0.0
        self.carries: list[dict[str, Tensor]] | None = None  # recurrent state, one per micro-batch
        found = self._find_checkpoint()
        if cfg["init"]:
            weights_file(cfg["init"])  # before the data are read
        self._build_data()
        self._build_networks(fresh=found is None)
        self._build_players()
        if found:
            self._resume(found)
        items = self.batch_size or len(self.data.train) / self.plan.batches_per_epoch
        self.recorder = Recorder(cfg, world, self.players, self.turns, items, self.step, self.seconds)
        if found:
            self.recorder.say(f"resumed from {found}")

    # ---- before the first step ----

    def _build_data(self) -> None:
        self.data = build_data(self.cfg)
        for split in (self.data.train, self.data.valid, self.data.test):
            if split is not None:
                split.to(self.world.device)
        self.batch_size, self.accumulate = self.cfg["data"]["batch_size"], self.options["accumulate"]  # None: batches of so many tokens
        self.plan = self.data.train.plan(self.batch_size)

    def _build_networks(self, fresh: bool) -> None:
        cfg, options = self.cfg, self.options
        state.seed_everything(cfg["seed"])  # the same initial weights on every rank
        objective = build_objective(cfg)
        micro_batch = (self.batch_size or 0) // (self.world.size * self.accumulate)
        check_fit(objective, self.data, tokens=micro_batch * cfg["data"].get("window", 0))
        if self.batch_size is None:
            check_token_batches(objective, self.plan.fewest, self.world.size, self.accumulate)
        frozen = any(not p.requires_grad for p in objective.parameters())  # checkpoints leave these to the file that they came from
        self.init_sha256 = start_from(objective, cfg["init"], cfg["init_skip"]) if cfg["init"] and (fresh or frozen) else None
        self.elsewhere, self.sources = state.kept_elsewhere(objective)
        objective.to(device=self.world.device, dtype=torch.get_default_dtype()).train()
        if options["frozen_precision"]:
            lighten(objective, options["frozen_precision"])
        if options["channels_last"]:
            objective.to(memory_format=torch.channels_last)
        if options["sync_batch_norm"] and self.world.size > 1:
            synchronise_batch_norm(objective)
        self.average = Average(objective, options["ema"]) if options["ema"] else None
        for networks in (objective, self.average.objective) if self.average else (objective,):
            if self.world.parallel == "fsdp":
                shard(networks, self.world)
            elif options["expert_parallel"]:
                share_experts(networks, self.world)
            for network in networks.children() if options["compile"] else ():
                network.compile()
        self.objective, self.buffers = objective, Buffers(objective)
        self.optional = [name for name in ("draw", "count", "initial_carry", "after_step") if hasattr(objective, name)]
        if self.average:
            self.average.follow(objective)

    def _build_players(self) -> None:
        self.turns = tuple(getattr(self.objective, "turns", ("model",)))
        noise_turns = getattr(self.objective, "noise_turns", ())
        self.data_turns = sum(turn not in noise_turns for turn in self.turns)  # batches of data an iteration takes
        self.noise_turns, self.weights = noise_turns, getattr(self.objective, "weights", {})
        self.players = {}
        for name in dict.fromkeys(self.turns):
            turns = self.turns.count(name)
            per_epoch = self.plan.batches_per_epoch * turns / max(self.data_turns, 1)
            self.players[name] = Player(name, self.objective, self.cfg, self.world, self.options["steps"] * turns, per_epoch)
        for player in self.players.values():
            self._focus(player)  # DDP looks only at what requires gradients when it is built
            player.wrap()
        self.generator = torch.Generator(self.world.device)
        state.seed_everything(self.cfg["seed"] + self.world.rank)  # dropout differs between ranks

    def _find_checkpoint(self) -> Path | None:
        """What to go on from: rank 0 chooses for all."""
        folder, choice, found = self.folder / "checkpoints", self.cfg["resume"], None
        if self.world.first:
            checkpoints.clean(folder)
            restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # by torchrun: go on with what this command began
            if choice not in ("auto", "never") and not restarted:
                found = Path(choice)
                checkpoints.abandon_after(folder, checkpoints.verify(found)["step"])
            else:
                found = checkpoints.newest_valid(folder)
        return self.world.from_first(found)

    def _resume(self, found: Path) -> None:
        tensors, training, manifest = checkpoints.load_checkpoint(found)
        if ("ema" in tensors) != bool(self.average) or training["players"].keys() != self.players.keys():
            raise NoCheckpointError(f"{found} is of another run: it has other networks or averages")
        for name, sha256 in manifest.get("frozen", {}).items():
            if self.sources.get(name) != sha256:
                raise NoCheckpointError(f"{found}: the frozen weights of '{name}' are not those that the run began with: put their file back")
        state.load_module(self.objective, tensors["weights"], str(found))
        if self.average:
            state.load_module(self.average.objective, tensors["ema"], str(found))
        for name, player in self.players.items():
            player.load(training["players"][name])
        if self.world.size == len(training["random"]):  # another number of ranks has no states to take over
            state.set_random_state(training["random"][self.world.rank], self.world.device)
        self.carries = state.carry_of_rank(training["carry"], self.world, self.accumulate)
        self.step, self.best, self.seconds = manifest["step"], training["best"], training["seconds"]

    # ---- the loop ----

    def train(self, stop: Stop) -> int:
        """Runs the remaining steps; see `run` for what it returns."""
        last, code = self.options["steps"], 0
        if self.step == last and (self.folder / "model.safetensors").exists():
            self.recorder.say(f"the run in {self.folder} is finished; resume=never runs it anew")
            return 0
        self._announce()
        self.batches = stream(self.data.train, self.plan, self.step * self.data_turns, self.world.device, self.world.rank, self.world.size)
        with profiler(self.options["profile"], self.folder, self.world.first) as profiled:
            self.recorder.start(self.step)
            while self.step < last and not code:
                self.iteration()
                self.step += 1
                profiled.step()
                code = stop.wanted(self.step)
                ends = self.step == last or code
                if ends or any(map(self._due, ("log_every", "eval_every", "save_every"))):
                    self.recorder.log(self.step, self.step * self.data_turns / self.plan.batches_per_epoch)
                if self._due("eval_every") or (self.step == last and self.options["monitor"]):
                    self._judge(self.evaluate(self.data.valid, "valid"))
                if self._due("draw_every"):
                    draw(self.average.objective if self.average else self.objective, self.data, self.cfg, self.world, self.step)
                if ends or self._due("save_every"):
                    self.save()
        if self.step < last:
            self.recorder.stopped(self.step, last)
            return code if code > 1 else 0  # 1 is the end of max_time
        return self.finish()

    def iteration(self) -> None:
        """The turns of one step, in the objective's order; then what the objective does after them, and the average."""
        skips = [self.turn(position, name) for position, name in enumerate(self.turns)]
        if "after_step" in self.optional:
            self.objective.after_step(self.step + 1)
        if self.average:
            self.average.update(skips[0] if len(skips) == 1 else torch.stack(skips).amin())

    def turn(self, position: int, name: str) -> Tensor:
        """Draws a global batch, takes this rank's share through forward and backward, updates the player; returns 1.0 if that was skipped."""
        player = self.players[name]
        self._focus(player)
        parts = self._micro_batches(position, name)
        counts, empty = self._counts(parts, name)
        statistics, before, after = self.buffers.snapshot(), [], []
        for i, part in enumerate(parts):
            carry = self._carry(i, part)
            with player.synchronised(last=i == len(parts) - 1):
                with autocast(self.options["precision"], self.world.device):
                    terms, logs, *new_carry = player.forward(part, name, *carry)
                    loss = self._loss(terms, counts)
                player.backward(loss * self.world.size if self.world.size > 1 else loss)  # DDP and FSDP average over ranks
            before += carry
            after += new_carry
            self.recorder.micro_batch(name, loss, terms, logs)
        norm, bad, skip = player.update(empty)
        self.buffers.undo(skip, statistics)
        if after:
            self.carries = [_unless(skip, old, new) for old, new in zip(before, after)]
        self.recorder.turn(name, counts, norm, bad, skip)
        return skip

    def _loss(self, terms: Mapping[str, Tensor], counts: Mapping[str, int | Tensor]) -> Tensor:
        """sum over terms of weight x sum / count: this micro-batch's part of the global batch's loss."""
        parts = [value * (self.weights.get(term, 1.0) / counts.get(term, self.batch_size)) for term, value in terms.items()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def _focus(self, player: Player) -> None:
        """Only this player's parameters require gradients."""
        if len(self.players) > 1:
            for other in self.players.values():
                other.learns(other is player)

    def _micro_batches(self, position: int, name: str) -> list[dict[str, Tensor]]:
        """This rank's share of the turn's global batch, cut into micro-batches; noise is drawn for the global batch, too."""
        batch = {} if name in self.noise_turns else next(self.batches)
        if "draw" in self.optional:
            self.generator.manual_seed(mixed(self.cfg["seed"], self.step, position))
            batch |= share(self.objective.draw(self.batch_size, self.generator), self.world.rank, self.world.size)
        if self.options["channels_last"]:
            batch = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in batch.items()}
        if self.accumulate == 1:
            return [batch]
        return [share(batch, i, self.accumulate) for i in range(self.accumulate)]

    def _counts(self, parts: list[dict[str, Tensor]], name: str) -> tuple[dict[str, int | Tensor], Tensor | None]:
        """How many items count over all micro-batches and ranks, by term; and 1.0 where there are none."""
        if "count" not in self.optional:
            return {}, None
        each = [self.objective.count(part, name) for part in parts]
        totals = {key: sum(count[key] for count in each) for key in each[0]}
        summed = self.world.sum(torch.stack([on_device(total, self.world.device) for total in totals.values()]))
        return dict(zip(totals, summed.clamp(min=1).unbind())), (summed == 0).all().to(torch.float32)

    def _carry(self, i: int, part: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
        if "initial_carry" not in self.optional:
            return ()
        return (self.carries[i] if self.carries else self.objective.initial_carry(len(next(iter(part.values())))),)

    # ---- now and then ----

    def evaluate(self, split: Any, name: str) -> dict[str, float]:
        """Metrics of a split, by the averaged weights if there are any."""
        if split is None:
            return {}
        self._share_statistics()
        cfg, objective = self.cfg, self.average.objective if self.average else self.objective
        metrics = evaluate(objective, split, self.batch_size, self.world, cfg["seed"], self.options["precision"])
        for section in cfg["evaluation"].values():
            every = section.get("every")
            if (every and self.step % every == 0) or (self.step == self.options["steps"] and split is (self.data.test or self.data.valid)):
                metrics |= extra_metrics(section, objective, self.data, cfg["seed"], self.options["precision"])[0]
        self.recorder.evaluated(self.step, name, metrics)
        return metrics

    def _judge(self, metrics: Mapping[str, float]) -> None:
        """Keeps the best checkpoint by `trainer.monitor`, and tells the schedules how it goes."""
        monitor = self.options["monitor"]
        if not monitor or not metrics:
            return
        key = monitor.removeprefix("-")
        if key not in metrics:
            raise ConfigError(f"trainer.monitor: there is no metric '{key}'; there are {', '.join(metrics)}")
        value = -metrics[key] if monitor.startswith("-") else metrics[key]
        if not math.isfinite(value):
            return
        for player in self.players.values():
            player.schedule.observe(value)
        if self.best is None or value > self.best["value"]:
            self.best = {"step": self.step, "value": value}
            self.save()

    def save(self) -> None:
        """One checkpoint of the whole run: gathered from all ranks, written by the first."""
        self._share_statistics()
        training = {
            "players": {name: player.state() for name, player in self.players.items()},
            "random": self.world.gather(state.random_state(self.world.device)),
            "carry": state.carry_in_order(self.carries, self.world),
            "best": self.best,
            "seconds": self.recorder.seconds,
        }
        tensors = self._weights("weights")
        if self.world.first:
            about = {"name": self.cfg["name"], "seed": self.cfg["seed"], "ranks": self.world.size, "frozen": self.sources}
            checkpoints.save_checkpoint(self.folder / "checkpoints", self.step, tensors, training, about)
            checkpoints.prune(self.folder / "checkpoints", self.options["keep"], self.best and self.best["step"])

    def finish(self) -> int:
        """Final weights, metrics on the test split, the curve, and where to go from here."""
        self._share_statistics()
        tensors = self._weights("model")
        if self.data.test is not None:
            self.evaluate(self.data.test, "test")
        if self.world.first:
            write_weights(self.folder, tensors, self.sources)
            if not self.world.in_step:  # sharded tensors are not whole
                save_beside(self.folder, self.objective, self.average.objective if self.average else self.objective)
            self.recorder.close()
            write_report(self.cfg, self.folder, self.recorder.progress, hasattr(self.objective, "sample"))
        self.world.barrier()
        return 0

    def close(self) -> None:
        self.recorder.close()

    def _weights(self, name: str) -> dict[str, dict[str, Tensor]]:
        averaged = {"ema": state.module_state(self.average.objective, self.elsewhere)} if self.average else {}
        return {name: state.module_state(self.objective, self.elsewhere), **averaged}

    def _share_statistics(self) -> None:
        """Rank 0's batch statistics for all, so that every rank evaluates the same model."""
        if self.world.size > 1:
            for flat in self.buffers.flats:
                torch.distributed.broadcast(flat, 0)

    def _due(self, key: str) -> bool:
        return bool(self.options[key]) and self.step % self.options[key] == 0

    def _announce(self) -> None:
        self.recorder.say(plan_in_words(self.cfg, self.world, self.objective, len(self.data.train)))
        for line in (*in_words(self.objective, self.cfg), *self.data.notes):
            self.recorder.say(line)
        if self.world.first:
            write_environment(self.folder, self.cfg, self.world, self.data.digest, self.init_sha256)
        if self.world.device.type == "cuda" and not self.world.in_step:
            address = self.plan.batch(0)
            two = self.data.train.fetch({key: value[:2] for key, value in address.items()})  # batch norm refuses one
            two |= self.objective.draw(2, self.generator) if "draw" in self.optional else {}
            if counted := iteration_work(self.objective, two):
                self.recorder.flops = counted.flops / 2 * len(next(iter(address.values())))  # of all ranks


def _unless(skip: Tensor, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The new recurrent state, or the old one where the step was skipped."""
    return {name: torch.where(skip.bool(), old[name], value) for name, value in new.items()}
