"""Rows a few at a time, so that the work tensors of a loss stay in the processor's cache and in mapped pages."""

from collections.abc import Iterator

# One [rows, V] float32 tensor. A loss has 5 to 12 of them, and an operation from memory takes 2 to 4 times as long as
# one from the cache (32 MB here); smaller blocks pay for the start of every operation, a few microseconds. 1 to 6 MiB
# made no difference beyond the noise; GPUs are not measured.
BLOCK_BYTES = {"cpu": 2 * 2**20}
BLOCK_BYTES_ELSEWHERE = 32 * 2**20


def row_blocks(num_rows: int, vocabulary: int, device_type: str) -> Iterator[slice]:
    """Slices that cover the rows in order, each of at least one."""
    rows = max(1, BLOCK_BYTES.get(device_type, BLOCK_BYTES_ELSEWHERE) // (4 * vocabulary))
    if device_type == "cpu":
        # glibc gives freed memory back to the system when more than a limit is free, and the next block would fault
        # every page in again (2.4 us a page here: FKL took 169 ms, then 99). The limit grows to twice the largest piece
        # under 32 MiB that was freed, so we free one: calloc, 25 us, no page of it is ever touched.
        bytes(31 * 2**20)
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))
