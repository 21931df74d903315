"""Makes the interpreter's fixtures: one module per operator family, one for whole models, one
for refusals.
"""
