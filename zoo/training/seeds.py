"""Seeds made of several numbers."""

import hashlib
import struct


def mixed(*numbers: int) -> int:
    """One 63-bit seed for a tuple such as (seed, step, turn), as good as independent of every other tuple's."""
    return int.from_bytes(hashlib.blake2b(struct.pack(f"{len(numbers)}q", *numbers), digest_size=8).digest(), "little") >> 1
