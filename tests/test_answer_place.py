"""Where a prompt ends: thoughts off or closed, a beginning-of-text token in front, and a warning where it is wrong."""

import codecs
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from prompts import byte_tokenizer, text_of, whole, write
from sentence_transformers import CrossEncoder
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prorank_jax.answer_place import warn_unlikely
from prorank_jax.card import Record
from prorank_jax.config import MeshConfig, PromptConfig
from prorank_jax.export import export_model
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import build_prompt, load_prompt, load_tokenizer
from prorank_jax.runtime.mesh import make_mesh
from prorank_jax.thinking import closing, open_block

TOKENS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<e>"]
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n"
# The generation prompts of Qwen3, SmolLM3, Granite 3.3 and R1's distilled models, and of others like them.
OFF = {
    "qwen3": "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    "on by default": "{% if enable_thinking | default(true) %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}",
    "granite": "{% if thinking is defined and not thinking %}<think>\n\n</think>\n\n{% endif %}",
    "opened": "<think>\n",
    "opened without a newline": "<think>",
    "opened with two": "<think>\n\n",
    "named otherwise": "{% if reasoning is not defined or reasoning %}<think>\n{% endif %}<think>\n\n</think>\n\n",
}
OFF_BY = ["enable_thinking", "enable_reasoning", "thinking", "reasoning", "think"]
EMPTY = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def conversation(end: str) -> str:
    """A chat template that ends so; Jinja eats the last newline of a file."""
    return TURNS + PROMPT + end + "{% endif %}"


def both(chat: str, folder: Path, tokens: list[str] = TOKENS) -> list[str]:
    """The prompts of a chat template, and of the same as a template for pairs; each as other tools make it, too."""
    texts = []
    named = PromptConfig(template=write(folder / "mine.jinja", chat))
    for own, config in ((chat, PromptConfig()), (None, named)):
        prompt = build_prompt(byte_tokenizer(tokens, own, eos_token="<e>"), config, place="made")
        assert prompt.encode("love?", "never") == whole(prompt, "love?", "never")
        # Written out, it is the same again, of a base model and of a reranker.
        again = byte_tokenizer(tokens, prompt.template, eos_token="<e>")
        for ids in (None, prompt.answer_ids):
            assert build_prompt(again, PromptConfig(), place="again", answer_ids=ids) == prompt
        texts.append(text_of(prompt))
    return texts


@pytest.mark.parametrize("name", OFF)
def test_a_model_is_asked_for_its_answer_and_no_thoughts(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for text in both(conversation(OFF[name]), tmp_path):
        assert text.endswith(EMPTY if name != "opened with two" else EMPTY.replace("\n\n</", "\n\n\n</"))
    assert caplog.records == []


def test_a_tag_in_a_turn_before_opens_no_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the template says to the model in the user's turn; the assistant's turn is as it was."""
    told = TURNS.replace("<|im_end|>", " Reason inside <think> and then answer.<|im_end|>")
    for end, closed in (("", "<|im_start|>assistant\n"), ("<think>\n", EMPTY)):
        for text in both(told + PROMPT + end + "{% endif %}", tmp_path):
            assert text.endswith(f" Reason inside <think> and then answer.<|im_end|>\n{closed}")
    assert caplog.records == []


@pytest.mark.parametrize("switch", OFF_BY)
def test_every_switch_is_turned_off(switch: str, tmp_path: Path) -> None:
    end = f"{{% if {switch} is not defined or {switch} %}}Let me think.{{% else %}}So:{{% endif %}}"
    for text in both(conversation(end), tmp_path):
        assert text.endswith("<|im_start|>assistant\nSo:")


@pytest.mark.parametrize("name", ["hybrid", "open"])
def test_trials_of_thinking_templates(name: str, shared: Path, tmp_path: Path) -> None:
    chat = (shared / "trials" / "02-thinking-templates" / f"{name}.jinja").read_text()
    made, pair = both(chat, tmp_path)
    assert made.endswith("0 if not.<|im_end|>\n" + EMPTY)
    assert pair == f"<|im_start|>query\nlove?<|im_end|>\n<|im_start|>document\nnever<|im_end|>\n{EMPTY}"


def test_qwen3_by_its_own_tokens(qwen: PreTrainedTokenizerFast, tmp_path: Path, shared: Path) -> None:
    """What configs/qwen3-0.6b.yaml trains on: Qwen2.5's tokenizer is Qwen3's but for the tokens of thoughts."""
    tokenizer = type(qwen).from_pretrained(shared / "models" / "qwen2.5-tokenizer")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = conversation(OFF["qwen3"])
    prompt = build_prompt(tokenizer, PromptConfig(), place="qwen3")
    assert tokenizer.convert_ids_to_tokens(prompt.encode("a", "b"))[-4:] == ["<think>", "ĊĊ", "</think>", "ĊĊ"]
    assert prompt.answer_ids == (15, 16)
    assert prompt.encode("a", "b?") == whole(prompt, "a", "b?")


@pytest.mark.parametrize(
    ("tail", "known", "close"),
    [
        ("<think>\n", "</think>", "\n</think>\n\n"),
        ("<think>\nlet me see", "", "\n\n</think>\n\n"),
        ("<|think|>\n", "<|/think|>", "\n<|/think|>\n\n"),
        ("<|think|>", "<|end_think|>", "\n\n<|end_think|>\n\n"),
        ("<|begin_of_thought|>\n\n", "<|end_of_thought|>", "\n<|end_of_thought|>\n\n"),
        ("<|START_THINKING|>", "<|END_THINKING|>", "\n\n<|END_THINKING|>\n\n"),
        ("[THINK]", "[/THINK]", "\n\n[/THINK]\n\n"),
        ("<reasoning>\n", "", "\n</reasoning>\n\n"),
        # Open, and nothing says how it is closed.
        ("<|think|>\n", "", ""),
    ],
)
def test_open_blocks(tail: str, known: str, close: str) -> None:
    assert open_block(tail) is not None
    assert closing(tail, [known]) == close
    assert not close or open_block(tail + close) is None


@pytest.mark.parametrize(
    "tail",
    [
        "<|im_start|>assistant\n",
        "<think></think>",
        "<think>\n\n</think>\n\n",
        "<|begin_of_thought|>x<|end_of_thought|>",
    ],
)
def test_blocks_that_are_closed(tail: str) -> None:
    assert open_block(tail) is None
    assert closing(tail, ["</think>", "<|end_of_thought|>"]) == ""


def test_the_template_that_a_model_was_trained_with_stays(caplog: pytest.LogCaptureFixture) -> None:
    """Its scores would be others than in every other tool; where it ends wrongly, that is said once."""
    pair = "".join(
        f"{{% for m in messages if m.role == '{role}' %}}{{{{ m.content }}}}\n{{% endfor %}}" for role in ROLES
    )
    tokenizer = byte_tokenizer(TOKENS, pair + "<think>\n{{ '' }}", eos_token="<e>")
    for _ in range(2):
        assert text_of(build_prompt(tokenizer, PromptConfig(), place="folder", answer_ids=(15, 16))).endswith(
            "<think>\n"
        )
    assert caplog.messages == [
        "folder: chat template: the prompt ends in '\\n<think>\\n', inside of a <think> block, where a model thinks; "
        "close it in the template"
    ]


ROLES = ("query", "document")


def test_a_prompt_that_ends_with_a_turn_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer(TOKENS, TURNS, eos_token="<|im_end|>")
    build_prompt(tokenizer, PromptConfig(), place="no header")
    assert caplog.messages == [
        "no header: chat template: the prompt ends in '\\nAnswer exactly 1 if relevant, 0 if not.<|im_end|>\\n', the "
        "end of a turn; print the beginning of the assistant's turn after it"
    ]


def with_bos(chat: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that puts <s> before every text, as Llama 2's."""
    tokenizer = byte_tokenizer(["<s>", "</s>"], chat, bos_token="<s>", eos_token="</s>")
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    return tokenizer


@pytest.mark.parametrize("prints", [False, True])
def test_one_bos_where_the_tokenizer_puts_one(prints: bool, shared: Path, tmp_path: Path) -> None:
    """TinyLlama-Chat's and Zephyr's template prints none, Llama 3's does; the prompt has one either way."""
    path = shared / "trials" / "12-template-without-bos" / "template.jinja"
    chat = ("{{ bos_token }}" if prints else "") + path.read_text()
    named = PromptConfig(template=write(tmp_path / "mine.jinja", chat))
    for own, config in ((chat, PromptConfig()), (None, named), (None, PromptConfig())):
        tokenizer = with_bos(own)
        prompt = build_prompt(tokenizer, config, place="made")
        ids = prompt.encode("love?", "never")
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert ids == whole(prompt, "love?", "never")
        told = prompt.with_instruction("Judge.") if own else prompt
        assert told.encode("love?", "never").count(tokenizer.bos_token_id) == 1
        # The prompt of an exported folder is this one, and gets no second.
        tokenizer.chat_template = prompt.template
        assert (
            build_prompt(tokenizer, PromptConfig(), place="again", answer_ids=prompt.answer_ids).encode(
                "love?", "never"
            )
            == ids
        )


def test_a_folder_whose_json_has_byte_order_marks(tiny_model: Path, tmp_path: Path) -> None:
    """All of it: the model, its tokenizer and the answers of a reranker."""
    plain = load_pretrained(tiny_model)
    expected = load_prompt(plain, PromptConfig(), "base")
    exported = tmp_path / "export"
    export_model(exported, plain, plain.params, expected, Record("base"))
    for source in (tiny_model, exported):
        folder = shutil.copytree(source, tmp_path / f"marked {source.name}")
        marked = [*folder.rglob("*.json")]
        assert len(marked) >= 3
        for path in marked:
            path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
        found = load_prompt(load_pretrained(folder), PromptConfig(), "base")
        assert (found.encode("a", "b"), found.answer_ids) == (expected.encode("a", "b"), expected.answer_ids)
        assert found.tokenizer.name_or_path == str(folder)


def test_a_bos_later_in_the_text_is_not_the_one_in_front(tmp_path: Path) -> None:
    """As a template that prints one before each of the assistant's turns."""
    chat = "{% for m in messages %}{{ m.content }}\n{% endfor %}{{ bos_token }}answer:"
    named = PromptConfig(template=write(tmp_path / "mine.jinja", chat))
    for own, config in ((chat, PromptConfig()), (None, named)):
        prompt = build_prompt(with_bos(own), config, place="made")
        text = text_of(prompt)
        assert text.startswith("<s>") and text.endswith("\n<s>answer:") and text.count("<s>") == 2
        assert prompt.encode("love?", "never") == whole(prompt, "love?", "never")
    spaced = with_bos("\n {{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}answer:")
    assert text_of(build_prompt(spaced, PromptConfig(), place="made")).count("<s>") == 1


def test_no_bos_where_the_tokenizer_puts_none(shared: Path) -> None:
    chat = (shared / "trials" / "12-template-without-bos" / "template.jinja").read_text()
    tokenizer = byte_tokenizer(["<s>", "</s>"], chat, bos_token="<s>", eos_token="</s>")
    assert not text_of(build_prompt(tokenizer, PromptConfig(), place="made")).startswith("<s>")


def test_sentence_transformers_makes_the_same_ids(tiny_model: Path, shared: Path, tmp_path: Path) -> None:
    """Of an exported folder whose tokenizer puts a token before every text, and whose chat template thinks."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tokenizer = load_tokenizer(base)
    bos = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)])
    tokenizer.backend_tokenizer.post_processor = processor
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = (shared / "trials" / "02-thinking-templates" / "open.jinja").read_text()
    tokenizer.save_pretrained(base)
    pretrained = load_pretrained(base)
    prompt = load_prompt(pretrained, PromptConfig(), str(base))
    export_model(tmp_path / "export", pretrained, pretrained.params, prompt, Record("base"))
    theirs = CrossEncoder(str(tmp_path / "export"), device="cpu").preprocess(
        [("which place serves fish?", "It is quiet.")]
    )
    [ids] = theirs["input_ids"].tolist()
    assert ids == prompt.encode("which place serves fish?", "It is quiet.")
    assert ids.count(bos) == 1
    assert text_of(prompt).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.usefixtures("fast_compilation")
def test_a_model_that_would_say_something_else_is_named(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its unembedding is turned so that another token has 16 more than an answer: e^-16 is 1e-7."""
    mesh = make_mesh(MeshConfig())
    base = load_pretrained(tiny_model)
    prompt = load_prompt(base, PromptConfig(), str(tiny_model))
    warn_unlikely(Decoder(base.config), base.params, prompt, mesh)
    assert caplog.messages == []
    embedding = np.array(base.params["embedding"])
    embedding[[*prompt.answer_ids, prompt.end_id], 0] = 0.0
    think = 99
    embedding[think, 0] = 8.0
    params = base.params | {"embedding": jax.numpy.asarray(embedding)}
    warn_unlikely(Decoder(base.config), params, prompt, mesh)
    [warning] = caplog.messages
    said = prompt.tokenizer.decode([think])
    assert warning.startswith(f"{tiny_model}: after the prompt's end ")
    assert f"the model says {said!r}, and neither '0' nor '1' (" in warning
    assert "assistant\\n'" in warning
