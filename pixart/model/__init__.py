"""The network: positions, embedders, attention, block, transformer."""
