"""`python -m benchmarks tasks`: small and real problems, trained with the same seeds on every backend."""

from .cli import main

__all__ = ["main"]
