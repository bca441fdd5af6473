"""What all settings share: frozen, no unknown keys, YAML in and out, errors that name the right key."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prevox.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
# a folder or a URL; a Path would make one slash of a URL's two
StorePlace = Annotated[str, Field(min_length=1), BeforeValidator(lambda at: str(at) if isinstance(at, Path) else at)]
RECIPES = Path(__file__).parent / "recipes"


class Config(BaseModel):
    """Base of every schema: immutable, unknown keys are errors, attribute docstrings are the help text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, settings: Mapping[str, Any], source: str = "settings") -> Self:
        """Build from plain values.

        Raises:
            ConfigError: With one line per wrong key; the nearest right key is named.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source)) from None

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-able values, ready for YAML."""
        return self.model_dump(mode="json")


def explain(error: ValidationError, schema: type[BaseModel], source: str) -> str:
    """Turn pydantic's report into one line per key: where, found, expected, what to do."""
    known = list(keys_of(schema))
    problems: dict[str, list[Any]] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_key_of(problem, known), []).append(problem)
    lines = []
    for key, found in problems.items():
        deepest = max(len(problem["loc"]) for problem in found)  # of a choice of types, the one that came nearest
        found = [problem for problem in found if len(problem["loc"]) == deepest]
        problem, messages = found[0], [problem["msg"].removeprefix("Value error, ") for problem in found]
        message = "; or ".join(dict.fromkeys(messages))
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            hint = f"Did you mean '{near[0]}'?" if near else f"Known keys here: {', '.join(siblings)}."
            lines.append(f"{source}: unknown key '{key}'. {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: '{key}' is required and was not given.")
        elif problem["type"] == "too_short":
            lines.append(f"{source}: '{key}' has {problem['ctx']['actual_length']} values; give one at least.")
        elif isinstance(problem["input"], Mapping | BaseModel):  # a rule between keys: the message says which
            lines.append(f"{source}: {key + ': ' if key else ''}{message}.")
        else:
            lines.append(f"{source}: '{key}' is {problem['input']!r}. {message}.")
    return "\n".join(lines)


def _key_of(problem: Any, known: list[str]) -> str:
    """Dotted key of a problem, without the names that pydantic gives to the branches of a choice of types."""
    parts = [str(part) for part in problem["loc"]]
    if problem["type"] in ("extra_forbidden", "missing"):
        return ".".join(parts)
    return next((key for n in range(len(parts), 0, -1) if (key := ".".join(parts[:n])) in known), ".".join(parts))


def keys_of(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a schema, nested ones included."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys_of(kind, f"{prefix}{name}.")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds something other than a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give an existing YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: found bytes that are no UTF-8 text; expected YAML. Give a text file.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace('"<unicode string>", ', "")
        tab = " YAML is indented with spaces, never with tabs." if "'\\t'" in reason else ""
        raise ConfigError(f"{path}: not valid YAML: {reason}.{tab} Correct that line.") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: found {found}; expected keys with values, such as `train: {{steps: 1000}}`.")
    return content


def section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings below one key; empty where there are none.

    Raises:
        ConfigError: If the key has a plain value instead.
    """
    found = settings.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise ConfigError(
            f"'{name}' is {found!r}; expected keys below it. Write `{name}: {{KEY: value}}`, or --{name}.KEY value on "
            "the command line."
        )
    return found or {}


def write_yaml(path: Path, settings: Mapping[str, Any], header: str = "") -> None:
    """Write a mapping as YAML in the given key order, with an optional comment on top."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(comment + yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, width=110))
    partial.replace(path)


def recipe_names(verb: str) -> list[str]:
    """Names of the recipes that ship for `pretrain` or `finetune`."""
    return sorted(path.stem for path in (RECIPES / verb).glob("*.yaml"))


def load_recipe(verb: str, recipe: str) -> dict[str, Any]:
    """Read a recipe by its name, or a YAML file by its path.

    Raises:
        ConfigError: If there is no such recipe; the nearest name is given.
    """
    shipped = RECIPES / verb / f"{recipe}.yaml"
    if shipped.is_file():
        return read_yaml(shipped)
    if Path(recipe).suffix in {".yaml", ".yml"}:
        return read_yaml(Path(recipe))
    names = recipe_names(verb)
    near = difflib.get_close_matches(recipe, names, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"recipe '{recipe}': no such {verb} recipe. {hint}Known: {', '.join(names)}; or give a .yaml file."
    )


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of nested mappings; values of `over` win."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def over_recipe(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over a recipe: they win, and a length in steps replaces one in epochs and the other way round."""
    train = section(settings, "train")
    other = {"steps": "epochs", "epochs": "steps"}
    dropped = {other[key] for key in other if train.get(key) is not None}
    kept = {key: value for key, value in section(recipe, "train").items() if key not in dropped}
    return merge({**recipe, "train": kept}, {key: value for key, value in settings.items() if value is not None})
