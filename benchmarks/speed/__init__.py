"""Speed and memory of this package beside others, on random weights; and what its shortcuts cost in quality."""
