"""Hold what is found as `models.NAME`."""
