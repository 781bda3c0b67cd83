"""Rows a few at a time, so that the work tensors of a loss stay in the processor's cache and in mapped pages."""

from collections.abc import Iterator

from kdrun.native import keep_freed_pages

# One [rows, V] float32 tensor. A loss has 5 to 12 of them, and an operation from memory takes 2 to 4 times as long as
# one from the cache (32 MB here); smaller blocks pay for the start of every operation, a few microseconds. 1 to 6 MiB
# made no difference beyond the noise; GPUs are not measured.
BLOCK_BYTES = {"cpu": 2 * 2**20}
BLOCK_BYTES_ELSEWHERE = 32 * 2**20


def row_blocks(num_rows: int, vocabulary: int, device_type: str) -> Iterator[slice]:
    """Slices that cover the rows in order, each of at least one."""
    rows = max(1, BLOCK_BYTES.get(device_type, BLOCK_BYTES_ELSEWHERE) // (4 * vocabulary))
    if device_type == "cpu":
        keep_freed_pages()
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))
