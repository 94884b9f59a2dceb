"""Command-line programs, run from the root as ``python -m scripts.NAME``. Nothing imports this package but itself."""
