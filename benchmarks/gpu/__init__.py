"""The campaign that proves the product on a real GPU in a few minutes, without network: see `command`."""
