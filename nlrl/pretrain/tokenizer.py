"""A small byte-level tokenizer, made from the corpus and saved in the layout transformers and vLLM read.

With the maze alone it is a BPE: numbers below 100 and the moves are never split from within nor merged with what
surrounds them, so that arithmetic and choices are single tokens; recurring phrases become single tokens by merging.

With other games it is a lexicon: what a reader must tell apart is cut out (each square of a board, each name of a
square, each move and seat, each word that states a fact, and each number from -1.00 to 1.00, sign and all, so that
which of two is larger, and where one stood before, is a matter of one token), and so are the phrases in between, the
most frequent of which become tokens as they are, without the tokens that merging would make on the way.

Any other text is spelled in bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, REPLY = "<pad>", "<s>", "</s>", "<reply>"
SPECIALS = (PAD, BOS, EOS, REPLY)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<reply>{{ message['content'] }}</s>"
    "{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
"""Prefix-preserving: a longer conversation's ids begin with a shorter one's."""


MAZE = r"[0-9]{1,2}|move (?:left|right|up|down)"
BOARDS = "|".join(
    (
        r"12345?6?7?8?\n",
        r"-?(?:0\.[0-9]{2}|1\.00)(?![0-9])",
        r"[a-h][1-8]",
        r"[bwxo.](?=[bwxo.]{2,7}\n)|(?<=[bwxo.]{2})[bwxo.]",
        r"[_OPGX√] (?=[_OPGX√][ \n])|[_√]|\b[OPGX]\b",
        r"\b(?:Left|Down|Right|Up|black|white|[xo])\b",
        r"\b(?:none|own|other|empty|up|down|left|right)\b",
    )
)
"""Numbers of columns; worths; squares by name; squares of boards in rows; those of lakes and of Tic-Tac-Toe; moves and
seats; facts."""
ALWAYS = (
    *(str(n) for n in range(100)),
    *(f"{sign}{n / 100:.2f}" for n in range(101) for sign in ("", "-")),
    *(f"{column}{row}" for column in "abcde" for row in range(1, 6)),
)
"""Tokens of every lexicon, however rare."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 640, *, lexicon: bool = False) -> PreTrainedTokenizerFast:
    """A BPE of `vocab_size` entries, the four special ones first; or a lexicon of at most as many."""
    if not lexicon:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = _cutter(MAZE)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    else:
        tokenizer = _lexicon(texts, vocab_size)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[REPLY],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _cutter(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"\n"), behavior="merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _lexicon(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The pieces that `BOARDS` and `MAZE` cut, the most frequent first: a BPE that takes whole pieces or bytes."""
    cutter = _cutter(f"{BOARDS}|{MAZE}")
    counts = Counter(piece for text in texts for piece, _ in cutter.pre_tokenize_str(text))
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *ALWAYS, *(p for p, _ in counts.most_common())]
    vocab = {piece: i for i, piece in enumerate(list(dict.fromkeys(pieces))[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.pre_tokenizer = cutter
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save_pretrained(folder)
