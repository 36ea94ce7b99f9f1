"""A small real tokenizer with a chat template, for tests that serve text."""

from pathlib import Path

CORPUS = [
    "the board is empty and it is your turn to move",
    "thought: the centre blocks two lines and wins next turn\nmove: 5",
    "you are on a frozen lake: up, down, left or right?",
    "0 1 2 3 4 5 6 7 8 9 , . : ; ( ) [ ] row column cell player opponent",
]


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write to ``folder`` a byte-level BPE of at most ``vocab_size`` tokens; <pad>, <bos>, <eos> are 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    fast.save_pretrained(folder)
