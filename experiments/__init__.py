"""Grids, benchmarks and the making of bundled files; nothing imports this package."""
