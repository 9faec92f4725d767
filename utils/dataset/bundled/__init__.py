"""Data sets that the project draws or fetches itself."""
