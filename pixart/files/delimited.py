"""Tables in text files (CSV, TSV), row by row, each with the number of its line."""
import csv
from collections.abc import Iterable, Iterator


def numbered_rows(lines: Iterable[str], separator: str = ",", strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """(number of the line a row ends on, its values) of every row that is not empty, the header included.

    lines: with their line ends, read with newline="", because quoted values may contain line ends. strict: refuse text
    between a closing quotation mark and the separator. Raises ValueError with the line where parsing fails.
    """
    reader, line = csv.reader(lines, delimiter=separator, strict=strict), 0
    try:
        for values in reader:
            if values:
                line = reader.line_num
                yield line, values
    except csv.Error as error:
        raise ValueError(f"from line {line + 1} on this is not a valid table ({error}); a quotation mark at the "
                         "start of a value needs one at its end") from error
