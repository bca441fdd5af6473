"""`prevox catalogue`: the catalogue, and the page about it beside it."""

from prevox.config.data import CatalogueConfig
from prevox.console import console
from prevox.data.catalogue import CatalogueResult
from prevox.data.catalogue import catalogue as make_catalogue
from prevox.reporting.catalogue_page import write_catalogue_page


def catalogue(config: CatalogueConfig) -> CatalogueResult:
    """Recognise, read, check and list the images of `config.paths`; write a page of counts and thumbnails beside.

    Raises:
        DataError: If a path holds no image, ids clash, the table does not fit, or no image can be used; with
            `strict`, for the first image that cannot be used.
        ConfigError: If a group is asked for without a table (given or found), or `out` does not end in .parquet.
        RunError: If `out` cannot be written; known before any image is read.
    """
    result = make_catalogue(config)
    if config.shard is not None:
        return result
    page = config.out.with_suffix(".html")
    write_catalogue_page(page, result.table, result.failures, result.thumbnails, config.rules)
    console.print(f"thumbnails and counts in {page}", markup=False, soft_wrap=True)
    return result
