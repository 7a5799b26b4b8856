"""Training inside ComfyUI: the request, the data from the graph, the session and its display."""
