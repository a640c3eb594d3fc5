"""A plain Flower app, handed to ``flwr run`` as it lies here: the opponent of ``polyclinic bench live``."""
