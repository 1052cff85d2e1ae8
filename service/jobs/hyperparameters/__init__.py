"""The hyperparameters of each method: one declaration for each, in ``shared`` or in the method's module.

``option`` says what a declaration is, and makes of it what may be asked for and what is resolved; ``table`` writes the
README's tables.
"""
