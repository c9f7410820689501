"""What the tests of prompts share: tokenizers made here, and prompts as others make them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prorank_jax.prompt import Prompt

TASK = "Decide whether the document is relevant to the query."


def byte_tokenizer(
    special: Sequence[str], chat: str | None = None, merges: Sequence[tuple[str, str]] = (), **names: str
) -> PreTrainedTokenizerFast:
    """One token per byte, and the tokens that `merges` lead to; a word may hold a newline."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat, **names)


def whole(prompt: Prompt, query: str, document: str) -> list[int]:
    """The ids that CrossEncoder makes of a pair: the whole rendered string, tokenised at once."""
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    # Its type covers every way to call it; this call gives ids.
    return cast(
        list[int], prompt.tokenizer.apply_chat_template(messages, chat_template=prompt.template, return_dict=False)
    )


def text_of(prompt: Prompt, query: str = "love?", document: str = "never") -> str:
    return cast(str, prompt.tokenizer.decode(prompt.encode(query, document)))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def random_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs of random Unicode texts that begin and end in what tokenizers join with their surroundings."""
    source = random.Random(0)
    alphabets = [
        "abcdefghij ABC 0123456789",
        ".,;:!?'\"()[]{}<>|/\\-_=+*&^%$#@~`",
        "\n\r\t \u00a0\u2003\u3000\x0b\x0c\x1c\x85\u2028",
        "éüñçøßДжЩαβγδ",
        "e\u0301a\u0308n\u0303\u0338\u0489\u20dd",
        "文書は検索漢字한국어",
        "مرحبا بالعالم؟ שלום",
        "😀👩‍👩‍👧🇩🇪👍🏽✊\ufe0f\u200d",
        "\0\x01\x07\x1b\x7f\ufeff\u200b\u202e\ufffd\ufffe\U000e0041\U0010ffff",
    ]
    endings = [
        "?",
        ".\n",
        "!\r\n\r\n",
        ")\t",
        "\u0301",
        "\u0338",
        "\u3002",
        "؟",
        "😀",
        "👩‍",
        "\ufe0f",
        "\u200b",
        "}}",
        "\\n",
    ]

    def text() -> str:
        parts = [source.choice(source.choice(alphabets)) for _ in range(source.randrange(1, 60))]
        return source.choice(alphabets[2]) + "x" * source.randrange(2) + "".join(parts) + source.choice(endings)

    return [(text(), text()) for _ in range(count)]
