"""Evaluation of methods with PixArt-mini: prompts, metrics, intervals, tables and plots."""
