"""Speed and memory compared with other implementations, on random weights; quality cost of caches."""
