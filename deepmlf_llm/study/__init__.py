"""Scale studies: a grid of settings becomes cells, each cell a run of the training recipe, all of them one report.

Import from the modules themselves; nothing heavy is loaded here.
"""
