"""The commands of `python -m pixart`, one a file: each adds its options to a parser, and runs."""
