"""C compiled on the machine that runs it, once, where a loop over rows in a core's cache beats torch's operations.

A compiler is no requirement: without one every caller has a way in torch, and a line of the log says so once.
"""

from kdrun.native.compiled import compiled, pointer

__all__ = ["compiled", "pointer"]
