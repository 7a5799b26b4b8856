"""Trainers: diffusion and latent-consistency distillation, the loop they share, and the data they read."""
