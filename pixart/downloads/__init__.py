"""Published weights: which there are, and fetching one from the model hub when a person asks for it."""
