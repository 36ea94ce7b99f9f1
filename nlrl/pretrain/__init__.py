"""How the models in the box are made: a corpus of game language, a tokenizer, a training loop. `nlrl pretrain`."""
