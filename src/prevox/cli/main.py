"""`prevox VERB ...`: the table of verbs and their dispatch. Nothing heavy is imported before a verb is chosen."""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from typing import Any, NamedTuple

from prevox.errors import DISK_FULL, PrevoxError
from prevox.signals import stop_signals
from prevox.streams import readers_may_leave


class Verb(NamedTuple):
    """Where a verb's settings and its function live, as `module:name`."""

    schema: str
    function: str
    does: str


VERBS: dict[str, Verb] = {
    "catalogue": Verb(
        "prevox.config.data:CatalogueConfig",
        "prevox.verbs.catalogue:catalogue",
        "recognise folders of scans; write one row per image",
    ),
    "plan": Verb(
        "prevox.config.data:PlanConfig",
        "prevox.verbs.plan:plan",
        "spacing, view and network for these scans, as nnU-Net plans",
    ),
    "prepare": Verb(
        "prevox.config.data:PrepareConfig",
        "prevox.data.prepare:prepare",
        "reorient, crop, resample; write an OME-Zarr store",
    ),
    "pretrain": Verb(
        "prevox.config.runs:pretrain_schema",
        "prevox.verbs.pretrain:pretrain",
        "pre-train an encoder on unlabelled images",
    ),
    "finetune": Verb(
        "prevox.config.runs:finetune_schema",
        "prevox.verbs.finetune:finetune",
        "fine-tune for segmentation, pre-trained or from scratch",
    ),
    "predict": Verb(
        "prevox.config.runs:PredictConfig",
        "prevox.inference.predict:predict",
        "segment images; masks on the input's own grid",
    ),
    "evaluate": Verb(
        "prevox.config.runs:EvaluateConfig",
        "prevox.evaluation.evaluate:evaluate",
        "metrics per case and class, with intervals over subjects",
    ),
    "compare": Verb(
        "prevox.config.runs:CompareConfig",
        "prevox.evaluation.compare:compare",
        "evaluated runs on the same cases: paired tests, ranks",
    ),
    "bench": Verb(
        "prevox.config.bench:BenchConfig",
        "prevox.verbs.bench:bench",
        "methods × data × labels × seeds from a file: run, compare",
    ),
    "report": Verb(
        "prevox.config.runs:ReportConfig",
        "prevox.reporting.report:report",
        "runs, evaluations or a comparison as one HTML file",
    ),
    "export": Verb(
        "prevox.config.tools:ExportConfig",
        "prevox.exporting.nnunet:export",
        "a pre-trained network for another tool (nnU-Net)",
    ),
    "demo": Verb("prevox.config.tools:DemoConfig", "prevox.verbs.demo:demo", "the whole chain on generated phantoms"),
    "list": Verb("prevox.config.tools:ListConfig", "prevox.verbs.tools:list_all", "methods, models, recipes, layouts"),
    "doctor": Verb("prevox.config.tools:DoctorConfig", "prevox.verbs.doctor:doctor", "is this machine fit"),
}
WITH_RECIPE = ("pretrain", "finetune")  # the verbs that train
PARTS = {"pretrain": ("method", "model"), "finetune": ("encoder",)}  # settings that depend on a registered name


def load(path: str) -> Any:
    """Import what `module:name` points to."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def usage() -> str:
    """The text of `prevox --help`."""
    verbs = "\n".join(f"  {name:<10} {verb.does}" for name, verb in VERBS.items())
    return (
        "usage: prevox VERB [OPTIONS]\n\n"
        "Pre-train medical-image networks on your own unlabelled scans, fine-tune them, and measure what it bought.\n\n"
        f"verbs, in the order of the work:\n{verbs}\n\n"
        "  prevox VERB --help   all options of a verb\n"
        "  prevox --version     the version\n"
    )


def schema_of(verb: str, settings: Mapping[str, Any]) -> Any:
    """The schema of a verb; of those that train, it depends on names in the settings."""
    schema = load(VERBS[verb].schema)
    if verb not in PARTS:
        return schema
    from prevox.config.base import section

    names = {part: section(settings, part).get("name") for part in PARTS[verb]}
    return schema(**{part: name for part, name in names.items() if name})


def run(verb: str, settings: Mapping[str, Any]) -> Any:
    """Run a verb with plain settings, the recipe's (if any) underneath; what `prevox.VERB(...)` calls.

    Raises:
        PrevoxError: If settings, input or environment are at fault.
    """
    from prevox.config.base import load_recipe, over_recipe

    merged = dict(settings)
    if verb in WITH_RECIPE and merged.get("recipe"):
        merged = over_recipe(load_recipe(verb, str(merged["recipe"])), merged)
    source = f"settings with recipe {merged['recipe']}" if merged.get("recipe") else "settings"
    config = schema_of(verb, merged).parse(merged, source)
    return load(VERBS[verb].function)(config)


def settings_from(verb: str, args: list[str]) -> dict[str, Any]:
    """Read a verb's settings from the command line; the recipe named there gives the defaults shown in --help."""
    from prevox.cli.parse import parse, peek
    from prevox.config.base import load_recipe, over_recipe

    given: dict[str, Any] = {}
    for part in PARTS.get(verb, ()):
        if (name := peek(args, f"{part}.name")) is not None:
            given[part] = {"name": name}
    recipe = peek(args, "recipe") if verb in WITH_RECIPE else None
    defaults = over_recipe(load_recipe(verb, recipe), given) if recipe else given
    length = {key for key in ("steps", "epochs") if peek(args, f"train.{key}") is not None}
    if length and "train" in defaults:  # a length given here replaces the recipe's, whatever its unit
        defaults["train"] = {key: value for key, value in defaults["train"].items() if key not in ("steps", "epochs")}
    return parse(schema_of(verb, defaults), args, defaults, program=f"prevox {verb}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `prevox`.

    Exits with 0, 1 (finished, but some cases failed), 2 (could not run) or 3 (a training that is no longer finite);
    with 141 instead of 0 where the reader of what it prints has left before the end.
    """
    with readers_may_leave():
        dispatch(sys.argv[1:] if argv is None else argv)


def dispatch(args: list[str]) -> None:
    """Do what the words of the command line say, and exit."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        from prevox import __version__

        sys.stdout.write(f"prevox {__version__}\n")
        sys.exit(0)
    if args[0] not in VERBS:
        import difflib

        near = difflib.get_close_matches(args[0], VERBS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        sys.stderr.write(f"prevox: no verb '{args[0]}'.{hint} Verbs: {', '.join(VERBS)}.\n")
        sys.exit(2)
    try:
        with stop_signals() if args[0] in WITH_RECIPE else nullcontext():
            result = run(args[0], settings_from(args[0], args[1:]))
    except PrevoxError as error:
        sys.stderr.write(f"prevox {args[0]}: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        sys.stderr.write(f"prevox {args[0]}: {error.filename or 'a file'}: cannot be written ({error.strerror}). ")
        sys.stderr.write("Free space or choose another --out, and repeat the call.\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"prevox {args[0]}: interrupted.\n")
        sys.exit(130)
    sys.exit(getattr(result, "exit_code", 0))
