"""How everything drawn looks: colours and strokes, axes in the page's style, drawings for the page and for papers."""

import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from prevox.output import replacing

# They keep at least 3:1 against the light and the dark page and stay apart for the colour-blind; a test computes both.
RUN_COLOURS = (
    *("#2f7dd1", "#d9622b", "#569da5", "#bb3d61", "#4e7187"),
    *("#9b7efd", "#18724f", "#a54715", "#7155ad", "#9b8b73"),
)
LINES = ("solid", "dashed", "dotted")  # words that matplotlib and style sheets share; the next with every ten runs
MARKERS = "osD^vP*X<>"  # of lines that are hard to tell apart by colour alone
LABEL_COLOURS = ("#ffb000", "#3fb6ff", "#ff5c8a", "#7ee081", "#c79bff", "#ff8f4a", "#4de0d0", "#e8e25a")
INK = "#010203"  # stands for the page's text colour until the SVG is in the page


@dataclass(frozen=True)
class Stroke:
    """How a run is drawn wherever it appears."""

    colour: str
    line: str


@dataclass(frozen=True, eq=False)
class Drawing:
    """A matplotlib figure with a name.

    Attributes:
        name: Unique within a report; also the name of its files.
    """

    name: str
    figure: Any

    def inline(self) -> Markup:
        """The drawing as an SVG element: text stays text, ink follows the page, ids are unique to the figure."""
        text = self._svg()
        text = text[text.index("<svg") :]  # without XML declaration and document type
        outside = (r"<metadata>.*?</metadata>", r"<style.*?</style>", r' xmlns(:xlink)?="[^"]*"', r'(?<=<g) id="[^"]*"')
        for needless in outside:  # addresses, rules that would act on the whole page, ids that other figures have too
            text = re.sub(needless, "", text, flags=re.DOTALL)
        text = re.sub(r"font-family: [^;\"]*;", "", text)  # the page's own font
        text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        described = f'<svg role="img" aria-label="{escape(self.name)}"'
        return Markup(text.replace("<svg", described, 1).replace(INK, "currentColor"))  # matplotlib escapes text in SVG

    def save(self, folder: Path) -> list[Path]:
        """Write the drawing as PDF and SVG, in black, text as text; equal drawings give equal files.

        Raises:
            RunError: If a file cannot be written.
        """
        import matplotlib as mpl

        plain = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        stem = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower() or "figure"
        with replacing(folder / f"{stem}.svg") as path:
            path.write_text(self._svg(), encoding="utf-8")
        with replacing(folder / f"{stem}.pdf") as path, mpl.rc_context({"pdf.fonttype": 42}):  # editable text
            self.figure.savefig(path, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        return [folder / f"{stem}.pdf", folder / f"{stem}.svg"]

    def _svg(self) -> str:
        import matplotlib as mpl

        buffer = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name, "svg.id": None}):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        return buffer.getvalue()


def run_stroke(number: int) -> Stroke:
    """Stroke of a run by its place in the report: ten colours, then the same with another line."""
    turn, colour = divmod(number, len(RUN_COLOURS))
    return Stroke(RUN_COLOURS[colour], LINES[turn % len(LINES)])


def label_colour(value: int) -> str:
    """Colour of a label value in overlays and legends."""
    return LABEL_COLOURS[(value - 1) % len(LABEL_COLOURS)]


def plain(name: str) -> str:
    """A name as matplotlib shall draw it: no formulas from names."""
    return name.replace("$", r"\$")


def new_axes(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of a size in inches and its axes, in the page's style."""
    figure, (axes,) = axes_in(size, 1, 1)
    return figure, axes


def axes_in(size: tuple[float, float], rows: int, columns: int) -> tuple[Any, list[Any]]:
    """A figure of a size in inches and the axes of its panels, row by row, in the page's style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for axes in panels:
        _style(axes)
    return figure, panels


def name_below(figure: Any, axes: Any) -> None:
    """Name what is labelled in the axes below them, where no name lies on a line; the figure grows by as much."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    letters = int(15 * figure.get_figwidth())  # side by side; what stands before a name takes the room of seven
    columns = max(1, min(3, len(names), letters // (max(map(len, names)) + 7)))
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * rows + 0.1)
    figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK)


def _style(axes: Any) -> None:
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.spines["bottom"].set_alpha(0.4)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.xaxis.label.set_color(INK)
    axes.xaxis.label.set_fontsize(8.5)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
