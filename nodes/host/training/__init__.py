"""Training inside the host: what is asked for, the data from the graph, the session, and what is seen of it."""
