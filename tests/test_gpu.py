"""What only a CUDA device can show."""

import json

import pytest
import torch

from tests.toys import TOYS, toy
from zoo.data.loader import stream
from zoo.training.distributed import World
from zoo.training.loop import Trainer, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_shape_of_training_runs_and_resumes(name, precision, tmp_path):
    keys = ["trainer.device=cuda", f"trainer.precision={precision}", "trainer.ema=0.9", "trainer.clip=1.0"]
    assert run(toy(name, tmp_path / "run", *keys)) == 0
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "lr" in r] == [1, 2, 3, 4, 5, 6]
    assert run(toy(name, tmp_path / "run", *keys)) == 0


@pytest.mark.parametrize("name", TOYS)
def test_a_step_never_waits_for_the_device(name, tmp_path):
    cfg = toy(name, tmp_path, "trainer.device=cuda", "trainer.ema=0.9", "trainer.clip=1.0")
    trainer = Trainer(cfg, World(0, 1, torch.device("cuda", 0), "none"))
    trainer.batches = stream(trainer.data.train, trainer.plan, 0, trainer.world.device)
    trainer.iteration()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.iteration()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.close()
    assert all(player.updates == 2 * trainer.turns.count(player.name) for player in trainer.players.values())
