"""Prompt templates as Jinja text: made from a tokenizer's own chat format, rendered, and completed.

A prompt template takes `messages` with the roles `query` and `document`, optionally `system` (the
instruction) and `assistant` (an answer); this is what sentence-transformers' CrossEncoder sends.
It is kept as `chat_template.jinja` in the model folder, and stands for itself: the instruction,
the header of the assistant's turn and the token that ends the turn are all in the text.

How its pieces become a prompt's token ids is in `prompt.py`.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from jinja2 import TemplateError, TemplateSyntaxError

from prorank_jax import sandbox, thinking
from prorank_jax.slots import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = list[dict[str, str]]

# Brackets, quotes, a newline and a letter beyond ASCII: a template that alters texts alters these too.
SYSTEM = '<"Systém"\nslot>'
QUERY = '<"Quéry"\nslot>'
DOCUMENT = '<"Documént"\nslot>'
ANSWER = '<"Answér"\nslot>'
PAIR: Messages = [{"role": "query", "content": QUERY}, {"role": "document", "content": DOCUMENT}]

INSTRUCTION = "Decide whether the document is relevant to the query."

# For tokenizers without a chat template: token that marks a format -> its turns, the token that ends one.
_FORMATS = {
    "<|im_start|>": (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{{user}}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "<|start_header_id|>": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "<start_of_turn>": (
        f"<start_of_turn>user\n{SYSTEM}\n\n{{user}}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
}
_PLAIN = f"{SYSTEM}\n\n{{user}}\nAnswer:\n"


def render(
    template: str,
    messages: Messages,
    tokenizer: "PreTrainedTokenizerFast",
    add_generation_prompt: bool = True,
    settings: Mapping[str, bool] = MappingProxyType({}),
) -> str:
    """Renders a template in a sandbox, with the settings and variables that transformers gives it.

    Args:
      settings: variables that a caller of transformers may set, such as `enable_thinking`.

    Raises:
      jinja2.TemplateError: the template is malformed, refuses the messages, takes too much, or fails in another way.
    """
    variables = {"messages": messages, "add_generation_prompt": add_generation_prompt, **tokenizer.special_tokens_map}
    return sandbox.render(template, {**variables, **settings})


def chat_template(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The tokenizer's own template, the default one where it has several by name."""
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


def is_pair_template(template: str, tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether a template is made for the roles `query` and `document`.

    Chat templates that print every role they meet (Llama 3, SmolLM2) are not: they would print a
    role of any name.

    Raises:
      jinja2.TemplateSyntaxError: the template is malformed.
    """
    try:
        rendered = render(template, PAIR, tokenizer)
    except TemplateSyntaxError:
        raise
    except TemplateError:
        return False
    if QUERY not in rendered or DOCUMENT not in rendered:
        return False
    try:
        return ANSWER not in render(template, [*PAIR, {"role": "no such role", "content": ANSWER}], tokenizer)
    except TemplateError:
        return True


def make_template(
    tokenizer: "PreTrainedTokenizerFast", instruction: str, answers: tuple[str, str], document_first: bool = False
) -> str:
    """Our prompt in the chat format of a tokenizer, as Jinja text.

    The format is read off the tokenizer's own chat template, which is asked not to think, else chosen by its special
    tokens, else plain text. A beginning-of-text token is in the text where the chat template writes it, or the
    tokenizer puts one before every text.

    Args:
      instruction: what the template says in the system's role when no message does.
      answers: the answers for "not relevant" and "relevant".
    """
    task = f"Answer exactly {answers[1]} if relevant, {answers[0]} if not."
    parts = [f"Query:\n{QUERY}\n", f"Document:\n{DOCUMENT}\n"]
    user = "".join(reversed(parts) if document_first else parts) + task
    text = _own_format(tokenizer, user)
    if text is None:
        text = _format(tokenizer)[0].replace("{user}", user)
    text = missing_bos(text, tokenizer) + text
    content = 'messages | selectattr("role", "eq", "{}") | map(attribute="content")'
    lines = [
        f"{{%- set system = ({content.format('system')} | list + [{_literal(instruction)}]) | first | trim -%}}",
        f"{{%- set query = {content.format('query')} | first | trim -%}}",
        f"{{%- set document = {content.format('document')} | first | trim -%}}",
    ]
    names = {SYSTEM: "system", QUERY: "query", DOCUMENT: "document"}
    for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
        if part in names:
            lines.append(f"{{{{- {names[part]} -}}}}")
        else:
            lines += [f"{{{{- {_literal(line)} -}}}}" for line in re.findall(r"[^\n]*\n|[^\n]+", part)]
    return "\n".join(lines) + "\n"


def missing_bos(text: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The beginning-of-text token, where the tokenizer puts one before every text and a template does not.

    Tools that render a template add no token to what it prints.
    """
    bos = tokenizer.bos_token
    if not bos or text.lstrip().startswith(bos) or tokenizer.encode("a")[0] != tokenizer.bos_token_id:
        return ""
    return str(bos)


def answer_tail(rendered: str) -> str:
    """What a rendered template has after the texts, up to the answer's place."""
    return rendered[max(rendered.rfind(sentinel) + len(sentinel) for sentinel in (QUERY, DOCUMENT)) :]


def adapt(template: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """Writes into a template for pairs what an untrained model needs: no roles but those of a pair, no thoughts, and a
    beginning-of-text token.

    The prompt of a model that was trained with the template must stay as it is. A template that has nothing to be
    changed is returned unchanged.

    Raises:
      jinja2.TemplateError: the template cannot be rendered.
    """
    if not is_pair_template(template, tokenizer):
        # One that prints every role would be taken for a chat template in the exported folder.
        roles = '["system", "query", "document", "assistant"]'
        template = f'{{% set messages = messages | selectattr("role", "in", {roles}) | list %}}\n{template}'
    for name in _no_thoughts(template, PAIR, tokenizer):
        template = f"{{% set {name} = false %}}\n{template}"
    rendered = render(template, PAIR, tokenizer)
    if close := _closing(rendered, template, tokenizer):
        printed = f"{{{{ {_literal(close)} }}}}"
        if _prints_answer(template, tokenizer):
            printed = f'{{%+ if messages[-1].role != "assistant" %}}{printed}{{% endif %}}'
        template = template.removesuffix("\n") + printed + "\n"
    if bos := missing_bos(rendered, tokenizer):
        template = f"{{{{ {_literal(bos)} }}}}{template}"
    return template


def complete(template: str, tokenizer: "PreTrainedTokenizerFast", instruction: str | None) -> str:
    """Writes into a template what it leaves to its caller, so that the file alone gives the same prompt.

    These are the instruction (where one is given), `add_generation_prompt` (CrossEncoder does not
    set it) and the end of an assistant's turn. A template that has them is returned unchanged.

    Raises:
      jinja2.TemplateError: the template cannot be rendered, or has no place for the instruction.
    """
    if instruction is not None:
        if SYSTEM not in render(template, [{"role": "system", "content": SYSTEM}, *PAIR], tokenizer):
            raise TemplateError("it prints no `system` message, so prompt.instruction has no place in it")
        told: Messages = [{"role": "system", "content": instruction}, *PAIR]
        if render(template, told, tokenizer) != render(template, PAIR, tokenizer):
            message = f'{{"role": "system", "content": {_literal(instruction)}}}'
            template = (
                '{% if messages[0].role != "system" %}'
                f"{{% set messages = [{message}] + messages %}}{{% endif %}}\n{template}"
            )
    if render(template, PAIR, tokenizer, add_generation_prompt=False) != render(template, PAIR, tokenizer):
        template = "{% set add_generation_prompt = true %}\n" + template
    end = own_turn_end(tokenizer)
    if _prints_answer(template, tokenizer) is False and end:
        template = (
            # Jinja drops the newline at the end of a file, which must not come back in the middle of one.
            template.removesuffix("\n")
            + '{%+ for message in messages if message.role == "assistant" %}'
            + f"{{{{ message.content }}}}{{{{ {_literal(end)} }}}}{{% endfor %}}\n"
        )
    return template


def _prints_answer(template: str, tokenizer: "PreTrainedTokenizerFast") -> bool | None:
    """Whether a template prints an assistant's message; None where it refuses the role, whatever is added to it."""
    try:
        return ANSWER in render(template, [*PAIR, {"role": "assistant", "content": ANSWER}], tokenizer)
    except TemplateError:
        return None


def turn_end(template: str, before: Messages, tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The added token that a template writes right after an assistant's message, if it writes one."""
    try:
        rendered = render(
            template, [*before, {"role": "assistant", "content": ANSWER}], tokenizer, add_generation_prompt=False
        )
    except TemplateError:
        return None
    ids = template_ids(tokenizer, rendered.partition(ANSWER)[2].lstrip())
    added = tokenizer.added_tokens_decoder
    return str(added[ids[0]]) if ids and ids[0] in added else None


def own_turn_end(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The token that ends a turn in the tokenizer's own chat format; its end-of-text token otherwise."""
    chat = chat_template(tokenizer)
    end = turn_end(chat, [{"role": "user", "content": QUERY}], tokenizer) if chat else None
    return end or _format(tokenizer)[1]


def template_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """The ids of template text, control tokens included, nothing added."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)
    return ids


def _own_format(tokenizer: "PreTrainedTokenizerFast", user: str) -> str | None:
    """A system and a user turn in the tokenizer's own chat format; None where it has none that works."""
    chat = chat_template(tokenizer)
    if not chat:
        return None
    system: Messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    # Gemma 2 refuses a system message, others drop it silently: then it opens the user's turn.
    folded: Messages = [{"role": "user", "content": f"{SYSTEM}\n\n{user}"}]
    for messages in (system, folded):
        try:
            text = render(chat, messages, tokenizer, settings=_no_thoughts(chat, messages, tokenizer))
        except TemplateError:
            continue
        if text.count(SYSTEM) == 1 and text.count(user) == 1:
            return text + _closing(text, chat, tokenizer)
    return None


def _closing(rendered: str, template: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """What closes the block of thoughts that the last turn of a rendered template leaves open."""
    tokens = control_tokens(tokenizer).values()
    return thinking.closing(thinking.last_turn(answer_tail(rendered), tokens), [template, *tokens])


def _no_thoughts(template: str, messages: Messages, tokenizer: "PreTrainedTokenizerFast") -> dict[str, bool]:
    """The variables by which a template is asked not to think, of those that it reads."""
    plain, found = render(template, messages, tokenizer), {}
    for name, value in thinking.OFF.items():
        # A name that a template uses for something else may fail it.
        with suppress(TemplateError):
            if render(template, messages, tokenizer, settings={name: value}) != plain:
                found[name] = value
    return found


def _format(tokenizer: "PreTrainedTokenizerFast") -> tuple[str, str | None]:
    """The turns, and the token that ends one, of the chat format whose tokens the tokenizer has."""
    known = tokenizer.backend_tokenizer.token_to_id
    for mark, (turns, end) in _FORMATS.items():
        if known(mark) is not None and known(end) is not None:
            return turns, end
    return _PLAIN, tokenizer.eos_token


def _literal(text: str) -> str:
    """A Jinja string literal; its escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
