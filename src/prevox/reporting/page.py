"""One self-contained HTML page from a template: styles, scripts and data inside, the network forbidden."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from prevox import __version__
from prevox.output import replacing, writable_folder

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("theme.js", "tables.js")  # of every page; where there are volumes, the viewer's too
# what JSON may hold and an HTML parser or an old script engine would stumble over
UNSAFE = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def render(template: str, filters: dict[str, Any], own: tuple[str, ...] = (), **content: Any) -> str:
    """The page as text; whatever comes from data is escaped.

    Args:
        template: File of the templates.
        filters: Functions that the template uses by name.
        own: Scripts that only this kind of page has.
        content: Names of the template; `volumes` (plain data for the viewer, or None) goes into the page as JSON.
    """
    environment = Environment(
        loader=PackageLoader("prevox.reporting"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    volumes = content.pop("volumes")
    scripts = (*SCRIPTS, *own) if volumes is None else (*SCRIPTS, *own, "viewer.js")
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    return environment.get_template(template).render(
        version=__version__,
        script=Markup(script),
        policy=policy(script),
        volumes=None if volumes is None else embedded(volumes),
        **content,
    )


def policy(script: str) -> str:
    """The content security policy of a page with one script: nothing is fetched, nothing else runs.

    Styles may be inline, since figures and swatches carry their colours; pictures are part of the page.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> Markup:
    """Plain data as JSON for a script element; no name in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(UNSAFE))


def write(page: str, out: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        RunError: If it cannot be written.
    """
    writable_folder(out.parent)
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
