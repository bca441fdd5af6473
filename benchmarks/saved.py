"""How much a forward pass keeps for its backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Saved:
    """Bytes of the memory that saved tensors lie in, each piece counted once."""

    bytes: int = 0


@contextmanager
def count_saved(without: Iterable[Tensor] = ()) -> Iterator[Saved]:
    """Count what autograd saves meanwhile; parameters and inputs are among it, but for those in `without`."""
    saved, seen = Saved(), {tensor.untyped_storage().data_ptr(): tensor for tensor in without}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = tensor  # kept, so that its memory is given to no other
            saved.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
