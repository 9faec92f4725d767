"""Data sets: their YAMLs, the makers of the bundled ones, and converters."""
