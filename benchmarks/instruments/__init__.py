"""The instruments of every benchmark: clocks, memory, counted arithmetic, random networks, notes and the report."""
