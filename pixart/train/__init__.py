"""Trainers for base models, few-step students, adapters and ControlNets; the loop they share and the data they read."""
