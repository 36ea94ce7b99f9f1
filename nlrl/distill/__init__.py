"""Context distillation: a student learns to say, from the plain question, what a teacher said from evidence.

`examples` makes the pairs, `forms` checks beforehand that the student may say what its teacher says, `dataset` makes
the token sequences, `student` trains and puts the new weights into the running engine. Importing this package loads no
torch.
"""
