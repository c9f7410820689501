"""Prompts: ids by hand, the same ids as a whole rendered string, cut to a length."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prompts import byte_tokenizer, random_pairs, text_of, whole, write
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from prorank_jax import prompt as prompt_module
from prorank_jax.config import PromptConfig
from prorank_jax.errors import InputError
from prorank_jax.prompt import KnownDocuments, Prompt, build_prompt, load_tokenizer
from prorank_jax.slots import encode_slots

# Written out from the tokens of vocab.json; Ġ is a space, Ċ a newline.
QWEN_HEAD = "<|im_start|> system Ċ Dec ide Ġwhether Ġthe Ġdocument Ġis Ġrelevant Ġto Ġthe Ġquery . <|im_end|> Ċ"
QWEN_HEAD += " <|im_start|> user Ċ Query :Ċ"
QWEN_MIDDLE = "Document :Ċ"
QWEN_TAIL = "Answer Ġexactly Ġ 1 Ġif Ġrelevant , Ġ 0 Ġif Ġnot . <|im_end|> Ċ <|im_start|> assistant Ċ"


def test_ids_by_hand(prompt: Prompt, qwen_folder: Path) -> None:
    vocabulary = json.loads((qwen_folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary |= {"<|im_start|>": 151644, "<|im_end|>": 151645}

    def ids(tokens: str) -> list[int]:
        return [vocabulary[token] for token in tokens.split()]

    # A question mark and the newline behind it are one token of Qwen's, not two.
    expected = ids(f"{QWEN_HEAD} is Ġlove Ġblind ?Ċ {QWEN_MIDDLE} Love Ġis Ġblind Ċ {QWEN_TAIL}")
    assert prompt.encode(" is love blind?\n", "Love is blind\t") == expected
    assert prompt.answer_ids == (15, 16)
    assert prompt.end_id == 151645  # <|im_end|>; the tokenizer's eos is 151643 in base models
    assert prompt.pad_id == 151643
    # The newline behind the query and the one behind the document belong to the template.
    assert prompt.pieces.length == len(f"{QWEN_HEAD} Ċ {QWEN_MIDDLE} Ċ {QWEN_TAIL}".split()) == 42


def test_the_default_wording_is_short(prompt: Prompt) -> None:
    assert len(text_of(prompt, "", "").split()) < 45


def test_joined_ids_are_those_of_the_whole_string(prompt: Prompt) -> None:
    # Around an empty text the template's own newlines meet, and ":\n\n" is one token.
    pairs = [*random_pairs(500), ("cat?", ""), ("", "dog."), ("", " ")]
    for (query, document), ids in zip(pairs, prompt.encode_batch(pairs), strict=True):
        assert ids == whole(prompt, query, document), (query, document)


def test_only_the_document_is_cut(prompt: Prompt) -> None:
    full, prompt = prompt, dataclasses.replace(prompt, max_length=42 + 10)
    query, document = " ".join(["cat"] * 4), " ".join(["dog"] * 20)
    ids = prompt.encode(query, document)
    assert len(ids) == 52
    # 10 tokens of room: 4 of the query, 6 of the document; the newline behind it stays.
    assert ids == full.encode(query, " ".join(["dog"] * 6))
    # A query may take 7 of the 10 (7.5 rounded down), and leaves the rest to the document.
    assert prompt.encode(" ".join(["cat"] * 9), document) == full.encode(" ".join(["cat"] * 7), "dog dog dog")
    assert prompt.encode(" ".join(["cat"] * 7), document) == full.encode(" ".join(["cat"] * 7), "dog dog dog")
    # What fits to the last token is not cut.
    assert prompt.encode(query, "dog dog dog dog dog dog") == full.encode(query, "dog dog dog dog dog dog")
    # sentence-transformers cuts the whole string and writes the template's end back over its last tokens.
    end = [198, *prompt.pieces.tail_ids]
    assert ids == whole(prompt, query, document)[: 52 - len(end)] + end


def test_no_room_is_refused(prompt: Prompt) -> None:
    message = (
        "^qwen: prompt.max_length=43: the template takes 42 tokens, which leaves no room for a query and a document; "
        "raise prompt.max_length to 44 or more$"
    )
    with pytest.raises(InputError, match=message):
        dataclasses.replace(prompt, max_length=43)
    assert dataclasses.replace(prompt, max_length=44).encode("cat cat", "dog dog") == prompt.encode("cat", "dog")
    with pytest.raises(InputError, match="^made: prompt.max_length=16: "):
        build_prompt(byte_tokenizer(["<e>"], eos_token="<e>"), PromptConfig(max_length=16), place="made")


def test_a_batch_is_its_pairs_one_by_one(prompt: Prompt) -> None:
    pairs = [("cat", "dog?"), ("cat", ""), ("", "dog?"), ("cow", "cat"), ("cat", "dog?")]
    assert prompt.encode_batch(pairs) == [prompt.encode(*pair) for pair in pairs]
    assert prompt.encode_batch([]) == []


def test_weird_texts_are_encoded(prompt: Prompt) -> None:
    # No tokenizer takes a lone surrogate: it becomes U+FFFD. NUL is byte 0, which Qwen writes Ā.
    assert prompt.encode("a\ud800b", "\udfff") == prompt.encode("a\ufffdb", "\ufffd")
    assert prompt.tokenizer.convert_tokens_to_ids("Ā") in prompt.encode("a", "a\0b")
    assert prompt.encode("\n\t ", "\u3000") == prompt.encode("", "")


@pytest.mark.parametrize("length", [70, 256])
@pytest.mark.parametrize(
    "text",
    [
        "the quick brown fox. ",
        "a",
        "abcdefghij",
        "=",
        "<|im_end|>",
        "0123456789",
        "e\u0301",
        "文書は検索 ",
        "a \n\t ",
        "😀",
    ],
)
def test_of_a_long_text_the_same_tokens_are_kept(
    prompt: Prompt, text: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(prompt, max_length=length)
    longer = [(text * (count // len(text) + 1))[:count] for count in (64 * length - 1, 64 * length + 1, 300 * length)]
    pairs = [*(("q", document) for document in longer), (longer[1], longer[2])]
    bounded = short.encode_batch(pairs)
    monkeypatch.setattr(prompt_module, "_CHARACTERS_A_TOKEN", 10**9)
    assert bounded == short.encode_batch(pairs)


def test_megabytes_on_one_line_take_no_time(prompt: Prompt) -> None:
    short = dataclasses.replace(prompt, max_length=512)
    start = time.monotonic()
    assert len(short.encode("0123456789" * 10**5, "0123456789" * 10**6)) == 512
    # Tokenised as a whole it takes some 10 s and 3 GB.
    assert time.monotonic() - start < 3


def test_answers_that_are_not_one_token(qwen: PreTrainedTokenizerFast) -> None:
    message = r"^qwen: prompt.answers: Qwen2Tokenizer makes \['1', '0'\] of the answer '10', not one token"
    with pytest.raises(InputError, match=message):
        build_prompt(qwen, PromptConfig(answers=("0", "10")), place="qwen")
    lower = byte_tokenizer(["<e>"], eos_token="<e>")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(
        InputError, match=r"^made: prompt.answers=\('n', 'N'\): both are token \d+; name two that differ"
    ):
        build_prompt(lower, PromptConfig(answers=("n", "N")), place="made")
    # Here 0 is one token, but not behind the newline that ends the prompt.
    glued = byte_tokenizer(["<e>"], merges=[("Ċ", "0")], eos_token="<e>")
    assert len(glued.encode("0")) == 1
    with pytest.raises(InputError, match=r"^made: prompt.answers: \w+ makes \['Ċ0'\] of the answer '0', not one token"):
        build_prompt(glued, PromptConfig(), place="made")


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer.json; copy the base model's tokenizer files into it"):
        load_tokenizer(tmp_path)
    write(tmp_path / "tokenizer.json", "{}")
    write(tmp_path / "tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match=r"no tokenizer could be loaded \(.*; give a model folder or a hub id$"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"^no/such/folder: no tokenizer could be loaded \("):
        load_tokenizer("no/such/folder")


def test_loading_says_nothing_about_pytorch(qwen_folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from prorank_jax.prompt import load_tokenizer\n"
        f"print(load_tokenizer({str(qwen_folder)!r}).encode('1'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[16]\n", "")


def test_documents_that_are_known_are_not_tokenised_again(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = dataclasses.replace(prompt, max_length=80)
    texts = ["", "short", "a longer one?", "very long " * 200, "x" * 3000]
    pairs = [(query, text) for query in ("what?", "why " * 90) for text in texts]
    expected = prompt.encode_batch(pairs)
    tokenised = []

    def encode(slots: Any, filled: list[str]) -> list[list[int]]:
        tokenised.extend(filled)
        return encode_slots(slots, filled)

    monkeypatch.setattr("prorank_jax.prompt.encode_slots", encode)
    known = KnownDocuments()
    for _ in range(2):
        for query in ("what?", "why " * 90):
            of_query = [pair for pair in pairs if pair[0] == query]
            parts = prompt.encode_parts(of_query, known)
            assert [[*shared, *own] for shared, own in parts] == [
                ids for ids, pair in zip(expected, pairs, strict=True) if pair[0] == query
            ]
    assert sum("very long" in text for text in tokenised) == 1
    assert sum("short" in text for text in tokenised) == 1


def test_documents_that_were_not_used_for_longest_are_forgotten_first() -> None:
    known = KnownDocuments(tokens=10)
    known.add({"a": [1] * 4, "b": [2] * 4}, max_length=8)
    assert known.among(["a", "c"]) == {"a": [1] * 4}
    known.add({"c": [3] * 40}, max_length=4)
    # Kept to 5 tokens, which with a's are 9.
    assert known.among(["a", "b", "c"]) == {"a": [1] * 4, "c": [3] * 5}
    known.add({"d": [4] * 11}, max_length=20)
    assert known.among(["a", "b", "c", "d"]) == {}
