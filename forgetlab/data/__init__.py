"""Reading rows: tables, texts, images, arrays, and files larger than the memory."""

from forgetlab.data.arrays import as_tensor, tables
from forgetlab.data.columns import Missing, Statistics, numbers
from forgetlab.data.datasets import Dataset, Samples, as_input, dataset, held_out
from forgetlab.data.files import Separator, read_folder, read_table, with_texts
from forgetlab.data.images import ENDINGS, Mode, decoded
from forgetlab.data.pixels import on_floats, refuse_all_but_images
from forgetlab.data.table import DomainOrder, Share, Table, by_column, labelled, texts, thinned
from forgetlab.data.text import Form, Texts, as_dataset, distinct
from forgetlab.data.torchvision_sets import labelled_tables, parts

__all__ = [
    "ENDINGS",
    "Dataset",
    "DomainOrder",
    "Form",
    "Missing",
    "Mode",
    "Samples",
    "Separator",
    "Share",
    "Statistics",
    "Table",
    "Texts",
    "as_dataset",
    "as_input",
    "as_tensor",
    "by_column",
    "dataset",
    "decoded",
    "distinct",
    "held_out",
    "labelled",
    "labelled_tables",
    "numbers",
    "on_floats",
    "parts",
    "read_folder",
    "read_table",
    "refuse_all_but_images",
    "tables",
    "texts",
    "thinned",
    "with_texts",
]
