"""How much a forward pass keeps for its backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Saved:
    """Bytes of the memory that saved tensors lie in, each piece counted once."""

    bytes: int = 0


@contextmanager
def count_saved() -> Iterator[Saved]:
    """Count what autograd saves meanwhile; parameters and inputs that are used are among it."""
    saved, seen = Saved(), {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if seen.setdefault(storage.data_ptr(), tensor) is tensor:  # kept, so that its memory is given to no other
            saved.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
