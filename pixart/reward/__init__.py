"""Reward models, which score how well an image matches its prompt, and methods that use their gradients."""
