"""The command line is a promise: adding, renaming or dropping an option must be seen in a review.

After a wanted change: python -m tests.unit.cli.test_options > tests/golden/cli.txt
"""

from pathlib import Path

import pytest

from prevox.cli.main import VERBS, schema_of
from prevox.config.base import keys_of
from prevox.methods.registry import METHODS
from prevox.models.registry import MODELS

pytestmark = pytest.mark.unit
GOLDEN = Path(__file__).parents[2] / "golden" / "cli.txt"


def surface() -> str:
    lines = [f"{verb} {key}" for verb in VERBS if verb != "pretrain" for key in keys_of(schema_of(verb, {}))]
    for method in METHODS:
        schema = schema_of("pretrain", {"method": {"name": method}})
        lines += [f"pretrain[{method}] {key}" for key in keys_of(schema)]
    for model in MODELS:
        schema = schema_of("pretrain", {"model": {"name": model}})
        lines += [f"pretrain[{model}] {key}" for key in keys_of(schema) if key.startswith("model.")]
        schema = schema_of("finetune", {"encoder": {"name": model}})
        lines += [f"finetune[{model}] {key}" for key in keys_of(schema) if key.startswith("encoder.")]
    return "\n".join(sorted(lines)) + "\n"


def test_options_are_those_of_the_golden_file() -> None:
    assert surface().splitlines() == GOLDEN.read_text().splitlines()


if __name__ == "__main__":
    print(surface(), end="")
