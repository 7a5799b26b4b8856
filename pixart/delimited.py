"""Tables in text files (CSV, TSV), row by row, each with the number of its line."""
import csv
from collections.abc import Iterable, Iterator


def numbered_rows(lines: Iterable[str], separator: str = ",", strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """(number in the file of the line that a row ends on, its values) of every row that is not empty, the header too.

    lines: with their ends, read with newline="", as quoted values may hold some. strict: refuse what stands between a
    closing quotation mark and the separator. Raises ValueError with the line from which on this is no table.
    """
    reader, line = csv.reader(lines, delimiter=separator, strict=strict), 0
    try:
        for values in reader:
            if values:
                line = reader.line_num
                yield line, values
    except csv.Error as error:
        raise ValueError(f"from line {line + 1} on this is no table ({error}); a quotation mark at the start of a "
                         "value needs its partner at the end") from error
