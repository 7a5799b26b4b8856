"""Speed, memory and quality of this package, measured.

Every file of this folder is a program of its own; `python -m benchmarks` lists the campaigns.
"""
