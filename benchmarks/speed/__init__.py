"""How fast training, preparation and generation are, beside a peer, beside the machine's floor, beside each other."""


class Skip(Exception):
    """A part that cannot run here; the message says what is missing and how to get it."""
