"""Adapters to ComfyUI: the only place that imports the host, and only inside functions."""
