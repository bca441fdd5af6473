"""The import rules of the design, and the import budget."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from prevox.cli.main import VERBS

pytestmark = pytest.mark.unit
SOURCE = Path(__file__).parents[2] / "src" / "prevox"

# package (or module) -> packages it must not import anywhere, not even inside a function
FORBIDDEN = {
    "config": ["torch", "prevox.train", "prevox.data", "prevox.cli"],
    "cli": ["torch", "prevox.train", "prevox.models", "prevox.methods"],
    "data": ["prevox.models", "prevox.methods", "prevox.train", "prevox.finetuning"],
    "views": ["prevox.models", "prevox.methods", "prevox.train", "prevox.data"],
    "masking": ["prevox.models", "prevox.methods", "prevox.train", "prevox.data"],
    "models": ["prevox.train", "prevox.data", "prevox.finetuning"],
    "methods": ["prevox.train", "prevox.finetuning", "prevox.data"],
    "train": ["prevox.methods", "prevox.models", "prevox.finetuning", "prevox.verbs"],
    "evaluation": ["torch", "prevox.train", "prevox.models", "prevox.methods", "prevox.finetuning", "prevox.inference"],
    "benching": ["torch", "prevox.train", "prevox.models", "prevox.methods", "prevox.finetuning", "prevox.inference"],
    "exporting": ["prevox.train", "prevox.data", "prevox.finetuning", "prevox.methods"],
    "reporting": ["torch", "prevox.train", "prevox.models", "prevox.methods", "prevox.finetuning", "prevox.inference"],
}
# within data, what runs in spawned processes or before a run must not load torch
TORCH_FREE = [
    "geometry",
    "store",
    "plan",
    "prepare",
    "runner",
    "dask_worker",
    "dask_cluster",
    "dask_engine",
    "dask_slurm",
    "catalogue",
    "splits",
    "phantom",
    "sampler",
    "readers",
    "layouts",
]


def modules(part: str) -> list[Path]:
    path = SOURCE / part
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offences(part: str, forbidden: list[str]) -> list[str]:
    return [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in modules(part)
        for name in imported(path)
        for bad in forbidden
        if name == bad or name.startswith(f"{bad}.")
    ]


def test_no_package_has_the_name_of_a_verb() -> None:
    """Once imported it would take the place of the function: `prevox.export(...)` would work a single time."""
    found = [verb for verb in VERBS if (SOURCE / verb / "__init__.py").exists() or (SOURCE / f"{verb}.py").exists()]
    assert found == []


@pytest.mark.parametrize("part", FORBIDDEN)
def test_package_imports_only_what_it_may(part: str) -> None:
    assert modules(part), f"{part} does not exist: the rule would hold of nothing"
    assert offences(part, FORBIDDEN[part]) == []


@pytest.mark.parametrize("part", TORCH_FREE)
def test_data_modules_are_torch_free(part: str) -> None:
    assert modules(f"data/{part}")
    assert offences(f"data/{part}", ["torch"]) == []


def test_the_rule_sees_an_offence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from torch import nn\n    import prevox.train.engine\n")
    assert {"torch", "prevox.train.engine"} <= imported(bad)


def loaded_modules(code: str) -> set[str]:
    script = f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import prevox",
        "from prevox.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass",
        "from prevox.cli.main import main\ntry:\n    main(['pretrain', '--help'])\nexcept SystemExit: pass",
        "import prevox.verbs.doctor",
        "from prevox.cli.main import VERBS, schema_of\nfor verb in VERBS: schema_of(verb, {})",
    ],
)
def test_help_and_import_do_not_load_heavy_packages(code: str) -> None:
    heavy = {"torch", "monai", "matplotlib", "pandas", "SimpleITK", "nibabel", "tensorstore", "scipy"}
    assert loaded_modules(code) & heavy == set()


def test_every_verb_of_the_table_exists() -> None:
    from prevox.cli.main import VERBS, load

    for verb in VERBS.values():
        assert callable(load(verb.schema))
        assert callable(load(verb.function))
