"""The command ``asyncthink``."""
