"""What every benchmark measures with: clocks, memory, counted arithmetic, random networks, notes and the report."""
