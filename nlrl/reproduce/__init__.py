"""The paper's results tried again in small: which rows there are, how each is run, tables written from the records.

`rows` is data: what was the start, what the paper reports, what is possible, what is aimed at. `running` runs a row
with several models and seeds and can be stopped anywhere; `results` holds what came of each; `tables` and `plots` are
written from those alone. `explain` follows one position through a run. Importing this package loads no torch.
"""
