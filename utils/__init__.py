"""Everything around the network: data, loss, training, metrics, files and devices."""
