"""Templates: made in the chat format of each family, read from files and exported folders, refused where they fail."""

import dataclasses
from pathlib import Path

import pytest
from prompts import TASK, byte_tokenizer, text_of, whole, write
from transformers import PreTrainedTokenizerFast

from prorank_jax.config import PromptConfig
from prorank_jax.errors import InputError
from prorank_jax.prompt import Prompt, build_prompt, load_tokenizer
from prorank_jax.templates import make_template

LLAMA3_CHAT = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_TOKENS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
USER_TURN = "Query:\nlove?\nDocument:\nnever\nAnswer exactly 1 if relevant, 0 if not."


def test_llama_format() -> None:
    tokenizer = byte_tokenizer(LLAMA3_TOKENS, LLAMA3_CHAT, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    prompt = build_prompt(tokenizer, PromptConfig(), place="llama")
    turns = (
        f"<|start_header_id|>system<|end_header_id|>\n\n{TASK}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{USER_TURN}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text_of(prompt) == "<|begin_of_text|>" + turns
    assert tokenizer.convert_ids_to_tokens(prompt.end_id) == "<|eot_id|>"
    assert prompt.pad_id == tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    assert prompt.encode("love?", "never\n\never") == whole(prompt, "love?", "never\n\never")
    # Without a chat template the format is known by its tokens; this tokenizer adds no bos by itself.
    bare = byte_tokenizer(LLAMA3_TOKENS, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    bare_prompt = build_prompt(bare, PromptConfig(), place="llama")
    assert (text_of(bare_prompt), bare_prompt.end_id) == (turns, prompt.end_id)


def test_gemma_format() -> None:
    tokenizer = byte_tokenizer(GEMMA_TOKENS, GEMMA_CHAT, bos_token="<bos>", eos_token="<eos>")
    prompt = build_prompt(tokenizer, PromptConfig(), place="gemma")
    # Gemma's template refuses a system message, so the task opens the user's turn.
    turns = f"<start_of_turn>user\n{TASK}\n\n{USER_TURN}<end_of_turn>\n<start_of_turn>model\n"
    assert text_of(prompt) == "<bos>" + turns
    assert tokenizer.convert_ids_to_tokens(prompt.end_id) == "<end_of_turn>"
    assert prompt.encode("love?", "{{ 7 }}") == whole(prompt, "love?", "{{ 7 }}")
    bare = byte_tokenizer(GEMMA_TOKENS, bos_token="<bos>", eos_token="<eos>")
    assert text_of(build_prompt(bare, PromptConfig(), place="gemma")) == turns


def test_chatml_and_plain_formats_without_a_chat_template() -> None:
    chatml = byte_tokenizer(["<|im_start|>", "<|im_end|>", "<e>"], eos_token="<e>")
    prompt = build_prompt(chatml, PromptConfig(), place="made")
    assert text_of(prompt) == (
        f"<|im_start|>system\n{TASK}<|im_end|>\n<|im_start|>user\n{USER_TURN}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatml.convert_ids_to_tokens(prompt.end_id) == "<|im_end|>"
    plain = byte_tokenizer(["<e>"], eos_token="<e>")
    prompt = build_prompt(plain, PromptConfig(), place="made")
    assert text_of(prompt) == f"{TASK}\n\n{USER_TURN}\nAnswer:\n"
    assert plain.convert_ids_to_tokens(prompt.end_id) == "<e>"
    with pytest.raises(InputError, match="^made: no token ends the assistant's turn; set eos_token"):
        build_prompt(byte_tokenizer([]), PromptConfig(), place="made")


def test_a_chat_template_that_prints_any_role_is_not_taken_for_ours() -> None:
    chat = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    chat += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], chat, eos_token="<|im_end|>")
    assert "<|im_start|>document" not in text_of(build_prompt(tokenizer, PromptConfig(), place="made"))


def test_a_template_with_the_date_of_today_is_the_same_tomorrow() -> None:
    chat = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}{% for m in messages %}{% generation %}"
    chat += "{{ m.content + '<e>\n' }}{% endgeneration %}{% endfor %}"
    tokenizer = byte_tokenizer(["<e>"], chat, eos_token="<e>")
    assert text_of(build_prompt(tokenizer, PromptConfig(), place="made")).startswith("Today: 26 Jul 2024\n")


def test_other_answers_are_worded_and_found(qwen: PreTrainedTokenizerFast) -> None:
    prompt = build_prompt(qwen, PromptConfig(answers=("no", "yes")), place="qwen")
    assert "Answer exactly yes if relevant, no if not.<|im_end|>" in text_of(prompt)
    assert prompt.answer_ids == (2152, 9693)


def test_an_instruction_replaces_the_task(qwen: PreTrainedTokenizerFast, prompt: Prompt) -> None:
    instruction = 'Say {{ 7 }} "quoted" \\n {% if %} é\nto {# me #}'
    told = build_prompt(qwen, PromptConfig(instruction=instruction), place="qwen")
    assert text_of(told) == text_of(prompt).replace(TASK, instruction)
    # CrossEncoder's `prompt=` arrives as a system message, and replaces the task as well.
    messages = [{"role": role, "content": text} for role, text in (("system", "S"), ("query", "Q"), ("document", "D"))]
    rendered = qwen.apply_chat_template(messages, chat_template=told.template, tokenize=False)
    assert rendered == text_of(prompt, "Q", "D").replace(TASK, "S")


@pytest.mark.parametrize("instruction", [None, "Find arguments\nagainst the claim."])
def test_an_exported_folder_gives_back_the_prompt(tmp_path: Path, instruction: str | None) -> None:
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>", "<e>"], eos_token="<e>")
    config = PromptConfig(instruction=instruction)
    prompt = build_prompt(tokenizer, config, place="base")
    tokenizer.chat_template = prompt.template
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == prompt.template
    exported = load_tokenizer(tmp_path)
    assert build_prompt(exported, PromptConfig(), place="export") == prompt
    assert build_prompt(exported, config, place="export") == prompt
    other = build_prompt(exported, PromptConfig(instruction="Other."), place="export")
    assert text_of(other) == text_of(prompt).replace(instruction or TASK, "Other.")
    # The new instruction is in the text of the template, as the old one was.
    exported.chat_template = other.template
    assert build_prompt(exported, PromptConfig(), place="again") == other


def test_a_template_file(tmp_path: Path) -> None:
    # It cuts nowhere behind a newline, puts the document first, and leaves the rest to its caller.
    text = """{% for m in messages if m.role in ["system", "document"] %}{{ m.content }} {% endfor -%}
|{% for m in messages if m.role == "query" %}{{ m.content }}{% endfor %}|{% if add_generation_prompt %}=>{% endif %}:
"""
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>", "<e>"], eos_token="<e>")
    config = PromptConfig(template=write(tmp_path / "mine.jinja", text), instruction="Judge.", max_length=32)
    prompt = build_prompt(tokenizer, config, place="base")
    assert text_of(prompt) == "Judge. never |love?|=>:"
    assert tokenizer.convert_ids_to_tokens(prompt.end_id) == "<|im_end|>"
    # The template is 13 bytes: with 17 there is room for three of the query and one of the document.
    short = dataclasses.replace(prompt, max_length=17)
    assert text_of(short, "cats", "dogs") == "Judge. d |cat|=>:"
    # Written out, it is complete: the same prompt from the exported folder, and from CrossEncoder.
    tokenizer.chat_template = prompt.template
    assert build_prompt(tokenizer, PromptConfig(max_length=32), place="export") == prompt
    assert whole(prompt, "love?", "never") == prompt.encode("love?", "never")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ messages[0].content }}", "it prints the text of the document 0 times; print the content of the message"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "it prints the text of the query 2 times"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "it prints the text of the query 0 times"),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", "it prints the text of the query 0 times"),
        ("{{ raise_exception('no pairs here') }}", r"it fails \(no pairs here\); let it print query and document"),
        ("{{ messages + 1 }}", r"it fails \(TypeError: "),
        ("{{ messages.clear() }}", r"it fails \(.*unsafe"),
    ],
)
def test_a_template_that_cannot_carry_a_pair(
    qwen: PreTrainedTokenizerFast, tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "mine.jinja", text)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        build_prompt(qwen, PromptConfig(template=path), place="qwen")


def test_template_files_that_cannot_be_read(qwen: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    with pytest.raises(InputError, match=r"mine.jinja: cannot be read \(No such file or directory\); name a file in"):
        build_prompt(qwen, PromptConfig(template=str(path)), place="qwen")
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="mine.jinja: byte 2 is not UTF-8"):
        build_prompt(qwen, PromptConfig(template=str(path)), place="qwen")
    write(path, "one\n\n{% if %}")
    with pytest.raises(InputError, match=r"mine.jinja:3: Expected an expression.*; mend the Jinja template there$"):
        build_prompt(qwen, PromptConfig(template=str(path)), place="qwen")
    write(path, "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="prints no `system` message, so prompt.instruction has no place in it"):
        build_prompt(qwen, PromptConfig(template=str(path), instruction="Judge."), place="qwen")
    broken = byte_tokenizer(["<e>"], "{{ messages", eos_token="<e>")
    with pytest.raises(InputError, match="^folder: chat template:1: "):
        build_prompt(broken, PromptConfig(), place="folder")


def test_made_templates_survive_the_end_of_the_file(qwen: PreTrainedTokenizerFast) -> None:
    # Jinja eats the last newline of a file, and an editor may add one.
    template = make_template(qwen, TASK, ("0", "1"))
    messages = [{"role": "query", "content": "Q"}, {"role": "document", "content": "D"}]
    for text in (template, template.rstrip("\n"), template + "\n\n"):
        rendered = qwen.apply_chat_template(messages, chat_template=text, tokenize=False)
        assert isinstance(rendered, str)
        assert rendered.endswith("0 if not.<|im_end|>\n<|im_start|>assistant\n")


def test_either_may_come_first(qwen: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    prompt = build_prompt(qwen, PromptConfig(max_length=60, order="document_first"), place="qwen")
    text = text_of(prompt, "love?", "never")
    assert text.index("Document:\nnever\n") < text.index("Query:\nlove?\n") < text.index("Answer exactly")
    for query, document in (("love?", "never"), ("a\nb?", ".\n"), ("Q", "x. " * 3)):
        assert prompt.encode(query, document) == whole(prompt, query, document)
    # It is the document that is cut, wherever it stands.
    cut = text_of(prompt, "love?", "never " * 99)
    assert len(prompt.encode("love?", "never " * 99)) == 60
    assert "never never" in cut
    assert "Query:\nlove?\n" in cut

    path = write(tmp_path / "made.jinja", prompt.template)
    again = build_prompt(qwen, PromptConfig(template=path), place="qwen")
    assert again.pieces.document_first
    with pytest.raises(InputError, match=r"made.jinja: it prints the document first, and prompt.order is query_first"):
        build_prompt(qwen, PromptConfig(template=path, order="query_first"), place="qwen")
