"""Samplers and the noise schedule. A sampler knows only a callable model(x, t) -> eps."""
