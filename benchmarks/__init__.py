"""How fast training, preparation and generation are, and beside whom."""
