"""The methods of training: one module each, listed in ``registry``. ``wire`` is how they are asked for and shown."""
