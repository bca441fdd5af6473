"""How this process keeps the memory of tensors that are freed, and where that of tables comes from.

glibc maps blocks of 32 MB and more anew for each tensor and unmaps them when it is freed, and returns the top of its
heap as well. Every step of a training then has the system clear its activations and gradients again, page by page: a
tenth of the time of a transformer on a CPU, almost half of a convolutional network's (benchmarks/allocator.py).
"""

import ctypes
from contextlib import suppress

# of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MAPPED = 1 << 30  # bytes; larger blocks are still given back


def keep_freed_memory() -> bool:
    """Let blocks below 1 GB stay with the process once freed, to be used again as they are.

    The process then holds what its largest step took, with some gaps, until it ends or calls `release_freed_memory`.
    Calling it again changes nothing.

    Returns:
        Whether the C library has taken it; only glibc does (Linux).
    """
    with suppress(AttributeError, OSError, TypeError):  # macOS, Windows, musl
        mallopt = ctypes.CDLL(None).mallopt
        # older versions take 32 MB at most for a threshold; there, nothing is mapped
        mapped = mallopt(_MMAP_THRESHOLD, _MAPPED) or mallopt(_MMAP_MAX, 0)
        return bool(mapped and mallopt(_TRIM_THRESHOLD, -1))
    return False


def release_freed_memory() -> None:
    """Give back to the system what is kept and not in use; it is taken again when it is needed."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def tables_from_system_memory() -> None:
    """Let Arrow take the memory of tables from the C library; its own pool keeps several times what they need."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
