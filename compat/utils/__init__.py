"""Hold what is found as `utils.NAME`."""
