"""The core that methods, metrics and benchmarks share: coordinates, denoisers, grids, plans, noise, networks, data."""
