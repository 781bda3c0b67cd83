"""What makes the processor at hand fast: C compiled on the spot, the better of torch's two matrix
libraries, memory that stays mapped.

None of it is required: without a compiler every caller has a way in torch, and a line of the log says so once.
"""

from kdrun.native.compiled import compiled, pointer
from kdrun.native.pages import keep_freed_pages
from kdrun.native.products import fast_float32_products

__all__ = ["compiled", "fast_float32_products", "keep_freed_pages", "pointer"]
