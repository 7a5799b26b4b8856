"""Rewards: networks that score how well a picture shows its prompt, and what is done with their gradients."""
