"""The commands of `python -m pixart`, one per file: each adds its options to a parser, and runs."""
