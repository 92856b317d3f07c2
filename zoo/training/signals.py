"""SIGTERM and SIGINT ask for a stop at the end of the step; a second one exits at once."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import torch

from zoo.training.distributed import World


class Stop:
    """Whether the run was asked to stop, agreed among ranks about once a second."""

    def __init__(self, world: World, minutes: float | None):
        self.world = world
        self.signal = 0
        self.deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
        self.next_step, self.asked = 0, None  # when the ranks ask each other again; where and when they last did

    def receive(self, number: int, frame: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def wanted(self, step: int) -> int:
        """128 + the signal's number, 1 for the end of `max_time`, or 0; the same on every rank."""
        if self.world.size == 1:
            return 128 + self.signal if self.signal else int(time.monotonic() > self.deadline)
        if step < self.next_step:
            return 0
        if self.asked is None:
            self.next_step, self.asked = step + 1, (step, time.monotonic())
            return 0
        first, since = self.asked
        pace = (step - first) / max(time.monotonic() - since, 1e-3)
        mine = 128 + self.signal if self.signal else int(time.monotonic() > self.deadline)
        code, pace = self.world.largest(torch.tensor([mine, int(pace)], device=self.world.device)).tolist()
        self.next_step, self.asked = step + max(pace, 1), (step, time.monotonic())
        return code


@contextlib.contextmanager
def stop_signals(world: World, minutes: float | None) -> Iterator[Stop]:
    """Listens for the two signals while training, and restores what listened before."""
    stop = Stop(world, minutes)
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
