"""`prevox report`: runs, evaluations or a comparison as one HTML file that opens offline, on a phone and on paper."""

from pathlib import Path

from prevox.config.runs import ReportConfig
from prevox.console import console
from prevox.output import writable_folder
from prevox.reporting import comparison_page, page, runs_page
from prevox.reporting.comparison_folder import read_comparison
from prevox.reporting.folders import read_runs


def report(config: ReportConfig) -> Path:
    """Write one self-contained page about one or several runs, or about a comparison.

    Args:
        config: Folders, where the page goes, and whether its figures are wanted as files too.

    Returns:
        The page.

    Raises:
        RunError: If a folder is no run, no evaluation and no comparison, or a file cannot be written.
    """
    if config.comparison is not None:
        comparison = read_comparison(config.comparison)
        about, out = "a comparison", config.out or config.comparison / "report.html"
        text, drawings = comparison_page.render(comparison, config.title)
    else:
        runs = read_runs(config.runs)
        about, out = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}", config.out or config.runs[0] / "report.html"
        text, drawings = runs_page.render(runs, config.title or ", ".join(run.name for run in runs))
    page.write(text, out)
    console.print(f"report: {about}, {len(text) / 1e6:.1f} MB: {out}", markup=False)
    if config.figures is not None:
        writable_folder(config.figures)
        files = [file for drawing in drawings for file in drawing.save(config.figures)]
        console.print(f"figures: {len(files)} files: {config.figures}", markup=False)
    return out
