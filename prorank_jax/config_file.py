"""The run configuration as users write it: a YAML file and `key=value` overrides in, a checked configuration out.

Unknown keys are refused with the nearest right one. Overrides reach any field by its dotted path (`warmup.steps=50`),
and are read as YAML.
"""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from prorank_jax.config import WARMUPS, RunConfig, warmup_method
from prorank_jax.errors import InputError
from prorank_jax.storage import Place, fetched

S = TypeVar("S", bound=BaseModel)
_MOST_NODES = 100_000
_LONGEST = 1 << 18
_DEEPEST = 50
_LARGEST = 1 << 63
_SHOWN = 60


def load_config(path: str | Place, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a YAML file and `key=value` overrides into a checked configuration.

    Raises:
      InputError: the file is missing or not YAML, a key is unknown, a value is out of range.
    """
    tree = read_mapping(path)
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, source=str(path))


def read_mapping(path: str | Place) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
      InputError: the file is missing or not YAML, or holds something else.
    """
    path = Path(fetched(path))
    try:
        tree = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not valid YAML ({_cut(error.problem)}); mend that line") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{path}: character {error.position} is U+{error.character:04X}; remove it") from None
    except ValueError as error:
        raise InputError(f"{path}: not a configuration ({error}); write out what is meant") from None
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise InputError(f"{path}: holds {kind}, not a mapping; write `section:` lines of `key: value`")
    return tree


def parse_config(tree: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Checks a plain mapping and returns the configuration.

    Raises:
      InputError: names `source`, the dotted field, its value and the remedy.
    """
    return parse_section(RunConfig, tree, source)


def parse_section(kind: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Checks a plain mapping and returns it as what it is meant to be.

    Raises:
      InputError: names `source`, the dotted field, its value and the remedy.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_first_problem(error, kind)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(left: RunConfig, right: RunConfig) -> list[str]:
    """One line `section.key: old -> new` per field in which two configurations differ."""
    old, new = _flatten(left.model_dump(mode="json")), _flatten(right.model_dump(mode="json"))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    ]


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, less the repeated keys: YAML would silently keep only the last."""

    def fetch_flow_collection_start(self, TokenClass: type) -> None:
        # Of brackets in brackets the library looks at all anew with each.
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(problem="nested too deep", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError):
            # A date that is none, a tag that the value does not fit.
            problem = f"{_shown(node.value)} is not the {node.tag.rpartition(':')[2]} that it looks like; quote it"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from None
        # One of thousands of digits, which hexadecimal can spell, could not even be shown.
        if isinstance(value, int) and abs(value) >= _LARGEST:
            problem = f"{_shown(node.value)} is beyond 64 bits"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        # A tag may claim that something else is a mapping.
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {_shown(key.value)} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str) -> Any:
    """What YAML text says.

    Raises:
      yaml.YAMLError: it is not YAML, or a value is not what it looks like.
      ValueError: it is too long or nested too deep, or aliases make it far larger than it is written.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {_LONGEST}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases make more than {_MOST_NODES} values of it")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The values that a node stands for, each alias written out; a node within itself has no end."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _shown(value: Any) -> str:
    """A value on one short line, for messages."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _cut(problem: str | None) -> str:
    """What the library says, in which a tag or an anchor may be of any length."""
    problem = problem or "it ends too early"
    return problem if len(problem) <= 2 * _SHOWN else f"{problem[: 2 * _SHOWN]}..."


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{_shown(override)}: an override is written key=value, for example warmup.steps=50")
    try:
        value = _parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"{_shown(override)}: the value is not valid YAML; quote it") from None
    *sections, name = key.split(".")
    for section in sections:
        node = tree.get(section)
        if node is None:
            node = tree[section] = {}
        if not isinstance(node, dict):
            raise InputError(f"{_shown(override)}: {section} is a value, not a section; name an existing field")
        tree = node
    tree[name] = value


def _first_problem(error: ValidationError, root: type[BaseModel]) -> str:
    # An unknown key explains the "missing" errors that come with it, so it is told first, and
    # what is there but wrong before what is not there.
    rank = {"extra_forbidden": 0, "invalid_key": 0, "missing": 2}
    problem = min(error.errors(), key=lambda problem: rank.get(problem["type"], 1))
    location, kind, value = problem["loc"], problem["type"], problem["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown_key(location, _fields_at(location[:-1], root))
    place = _dotted(location)
    if kind == "union_tag_invalid":
        return f"{place}.method={_shown(warmup_method(value))}: no way to warm up; use {', '.join(WARMUPS)}"
    if kind == "missing":
        return f"{place}: missing; this field has no default"
    if kind == "model_type":
        return f"{place}={_shown(value)}: a section, not a value; write its fields as `key: value` lines below it"
    if kind == "value_error":
        detail = str(problem["ctx"]["error"])
        return f"{place}.{detail}" if place else detail
    remedy = "; put it in quotes" if kind == "string_type" else ""
    return f"{place}={_shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}{remedy}"


def _unknown_key(location: tuple[str | int, ...], known: list[str]) -> str:
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"{_dotted(location)}: unknown key; {remedy}"


def _dotted(location: tuple[str | int, ...]) -> str:
    """A location as the file's writer knows it: without the tag of the method that pydantic puts behind `warmup`."""
    tagged = location[:1] == ("warmup",) and location[1:2] in [(method,) for method in WARMUPS]
    return ".".join(str(part)[:_SHOWN] for part in (location[:1] + location[2:] if tagged else location))


def _fields_at(location: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    section = root
    for part in location:
        if part in WARMUPS:
            section = WARMUPS[str(part)]
            continue
        if isinstance(part, int):  # of several sections of one kind
            continue
        annotation = section.model_fields[str(part)].annotation
        section = next(iter(_sections(annotation)), section)
    return list(section.model_fields)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections among the choices that an annotation leaves."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for choice in get_args(annotation) for section in _sections(choice)]
