"""Check what an exported file must show before it is kept."""
