"""How ways of drawing with PixArt-mini are compared: what is drawn, the measures, their intervals, tables and plots."""
