"""Templates of models that think before they answer: asked not to, and an open block of thoughts closed.

Such a template prints an empty block where `enable_thinking` is false (Qwen3), or opens one whatever it is asked (the
distilled models of DeepSeek-R1). Inside of a block, and where a block is about to be opened, neither answer is the next
token.
"""

import re
from collections.abc import Collection

OFF = dict.fromkeys(("enable_thinking", "enable_reasoning", "thinking", "reasoning", "think"), False)
"""The variables by which templates are asked not to think."""

TAIL = 60
"""Characters of a prompt's end that messages show."""

# <think>, <|think|>, <|begin_of_thought|>, <|START_THINKING|>, [THINK], <seed:think>, and what closes them.
_TAG = re.compile(
    r"(?P<left><\|?|\[|◁)(?P<slash>/?)\|?(?P<name>(?:\w+[:_])*(?:think(?:ing)?|thoughts?|reason(?:ing)?)(?:_\w+)?)"
    r"(?P<right>/?\|?>|\]|▷)",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(^|_)end(_|$)", re.IGNORECASE)
_BEGINS = re.compile(r"(?<![^_])(begin|start)(?![^_])", re.IGNORECASE)


def open_block(tail: str) -> str | None:
    """The tag of the block of thoughts that a text leaves open.

    >>> open_block("assistant\\n<think>\\n"), open_block("<think>\\n\\n</think>\\n\\n")
    ('<think>', None)
    """
    tags = list(_TAG.finditer(tail))
    return tags[-1].group() if tags and not _closes(tags[-1]) else None


def closing(tail: str, known: Collection[str]) -> str:
    """What closes the block that a text leaves open, as Qwen3 writes an empty one; empty where nothing is to be closed.

    Args:
      known: texts that hold the tags of the model: its template, and its control tokens.
    """
    opened = open_block(tail)
    if opened is None:
        return ""
    found = next((tag for tag in _counterparts(opened) if any(tag in text for text in known)), None)
    if found is None and re.fullmatch(r"<\w+>", opened):
        found = f"</{opened[1:]}"
    if found is None:
        return ""
    return ("\n" if tail.endswith("\n") else "\n\n") + f"{found}\n\n"


def last_turn(tail: str, tokens: Collection[str]) -> str:
    """What a text has after its last control token that is no tag of thoughts: a tag before it opens no block there.

    >>> last_turn("Reason inside <think>.<|im_end|>\\n<|im_start|>assistant\\n<think>", ["<|im_start|>", "<think>"])
    'assistant\\n<think>'
    """
    turns = [token for token in tokens if token and not _TAG.fullmatch(token)]
    return tail[max((tail.rfind(token) + len(token) for token in turns if token in tail), default=0) :]


def no_answer_place(tail: str, end_token: str, tokens: Collection[str]) -> str | None:
    """Why a model would not give its answer after the end of a prompt, as far as the text shows it.

    Args:
      tokens: the model's control tokens.
    """
    shown = repr(tail[-TAIL:])
    if opened := open_block(last_turn(tail, tokens)):
        return f"the prompt ends in {shown}, inside of a {opened} block, where a model thinks; close it in the template"
    if tail.rstrip().endswith(end_token):
        return f"the prompt ends in {shown}, the end of a turn; print the beginning of the assistant's turn after it"
    return None


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag["slash"]) or tag["right"].startswith("/") or bool(_ENDS.search(tag["name"]))


def _counterparts(opened: str) -> list[str]:
    """The spellings of the tag that closes another."""
    tag = _TAG.fullmatch(opened)
    assert tag is not None
    left, name, right = tag["left"], tag["name"], tag["right"]
    ends = [_BEGINS.sub(lambda word: "END" if word.group().isupper() else "end", name)]
    if ends == [name]:
        ends = [f"end_{name}", f"{name}_end", f"end_of_{name}"]
    return [
        f"{left}/{name}{right}",
        f"</{name}>",
        f"</|{name}|>",
        f"{left}{name}/{right}",
        *(f"{left}{end}{right}" for end in ends),
    ]
