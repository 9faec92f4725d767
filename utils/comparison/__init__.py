"""Hold what compare.py needs: its options, table, Pareto plot and page."""
