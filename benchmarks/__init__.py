"""Benchmarks of speed, memory and quality.

Every file in this folder is a separate program; `python -m benchmarks` lists the campaigns.
"""
