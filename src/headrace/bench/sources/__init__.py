"""``headrace bench sources``: tables, images and text from files."""

from headrace.bench.harness import Report, Say, Size, environment
from headrace.bench.sources.images import images
from headrace.bench.sources.tables import tables
from headrace.bench.sources.text import text

_MEANING = (
    "all systems of a row in turn in each round, medians; a ratio is the median of the rounds' "
    "ratios; the files are in the cache of the operating system",
    "images: crops of scikit-learn's two photographs, as JPEG; torch's loader decodes with Pillow; "
    "a bare loop decodes half of them with libjpeg-turbo and does nothing else",
    "tables: 20 columns of numbers; the first batch counts from making the dataset on; torch's "
    "loader has a dataset of decoded columns that returns a row as a dict",
    "JSON lines: about 230 bytes each, collated as usual; a bare loop seeks, reads and parses half "
    "of them in the same kind of order, and neither collates nor sends them",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes some minutes and 1 GB of disk."""
    where = environment()
    rows = [*tables(size, say), *images(size, say), *text(size, say)]
    return Report("sources", _MEANING, tuple(rows), size, where)
