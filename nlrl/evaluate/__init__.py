"""Grading: what was played, moved, said and believed, held against exact answers and against what chance would do.

Pure functions over the records of a run. `nlrl.evaluate.grades` is the front; nothing here asks a model.
"""
