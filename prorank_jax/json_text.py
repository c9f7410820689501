"""JSON that comes from anybody."""

import json
from typing import Any


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What JSON text says; `options` are those of `json.loads`.

    Raises:
      ValueError: it is not JSON, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deep") from None
