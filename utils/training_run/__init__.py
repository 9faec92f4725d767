"""Hold the stages of a training run, in their order: settings, data, epochs, validation."""
