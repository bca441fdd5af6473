"""From command-line flags to plain settings.

tyro reads strings by the types of a loose copy of the schema (same names, help and types, no constraints); the
schema itself judges the values afterwards, so that flags, YAML and Python arguments meet the same messages.
"""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import tyro
from pydantic import BaseModel, Field, create_model
from pydantic_core import PydanticUndefined

from prevox.config.base import section


def peek(args: Sequence[str], flag: str) -> str | None:
    """The value of --flag (its words joined by - or _) without parsing the rest."""
    names = {f"--{flag}", f"--{flag.replace('_', '-')}"}
    for position, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else (args[position + 1] if position + 1 < len(args) else None)
    return None


def parse(schema: type[BaseModel], args: Sequence[str], defaults: Mapping[str, Any], program: str) -> dict[str, Any]:
    """Read flags; what is not given comes from `defaults`, then from the schema.

    Args:
        schema: The verb's schema.
        args: The words after the verb.
        defaults: Plain nested settings of a recipe.
        program: Shown in the usage line.

    Returns:
        Plain nested settings, not yet validated.
    """
    loose = _loose(schema, defaults)
    parsed = tyro.cli(loose, args=list(args), prog=program, description=schema.__doc__)
    return _prune(parsed.model_dump(), schema)


def _loose(schema: type[BaseModel], defaults: Mapping[str, Any], optional: bool = False) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    own_first = sorted(schema.model_fields, key=lambda name: name not in schema.__annotations__)
    for name in own_first:
        field = schema.model_fields[name]
        nested, may_be_none = _nested(field.annotation)
        if nested is not None:
            inner = _loose(nested, section(defaults, name), optional or may_be_none)
            fields[name] = (inner, Field(default_factory=inner, description=_first_line(nested)))
            continue
        kind: Any = field.annotation
        default = defaults.get(name, field.default)
        if _is_mapping(kind):  # WT=1,2,3 TC=2,3
            kind = tuple[str, ...] | None
            default = _as_words(default)
        if optional and name not in defaults:  # unset, so that a part nobody touches stays None
            kind, default = kind | None, None
        kind = _unconstrained(kind)
        markers = [item for item in field.metadata if type(item).__module__.startswith("tyro")]
        if markers:
            kind = Annotated[kind, *markers]
        required = default is PydanticUndefined
        fields[name] = (kind, Field(... if required else _typed(default), description=field.description))
    return create_model(schema.__name__, __doc__=schema.__doc__, **fields)


def _nested(kind: Any) -> tuple[type[BaseModel] | None, bool]:
    """The schema inside `Config` or `Config | None`, and whether None is allowed."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return (models[0] if models else None), type(None) in options


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) is dict or any(_is_mapping(part) for part in get_args(kind))


def _unconstrained(kind: Any) -> Any:
    """Without the constraints inside: tuple[Annotated[float, Field(gt=0)], ...] becomes tuple[float, ...]."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _unconstrained(parts[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(_unconstrained(part) for part in parts)]  # noqa: UP007 - built at run time
    if origin is tuple:
        return tuple[tuple(_unconstrained(part) for part in parts)]  # type: ignore[misc]
    return kind


def _as_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(f"{name}={','.join(str(number) for number in numbers)}" for name, numbers in value.items())
    return value


def _typed(value: Any) -> Any:
    """YAML's lists as the tuples that the schema has."""
    return tuple(value) if isinstance(value, list) else value


def _first_line(schema: type[BaseModel]) -> str:
    return (schema.__doc__ or "").strip().splitlines()[0]


def _prune(values: dict[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """Drop the unset keys of optional parts; a part with nothing set becomes None."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        nested, may_be_none = _nested(schema.model_fields[name].annotation)
        if nested is None:
            result[name] = str(value) if isinstance(value, Path) else value
            continue
        inner = _prune(value, nested)
        if may_be_none:
            inner = {key: item for key, item in inner.items() if item is not None}
        result[name] = (inner or None) if may_be_none else inner
    return result
