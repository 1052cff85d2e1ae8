"""Rows of public data sets as they are downloaded: Parquet, JSON Lines, or one JSON list."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Source = dict[str, Any]
ROWS_AT_A_TIME = 256
"""Of a Parquet file. A row of Eurus' code may have megabytes of tests."""


def rows_of(paths: Iterable[Path]) -> Iterator[Source]:
    """The rows of all files, in order. Raises ``ValueError`` for what is no such file."""
    for path in paths:
        match path.suffix:
            case ".parquet":
                yield from _parquet(path)
            case ".jsonl":
                yield from _json_lines(path)
            case ".json":
                yield from _objects(json.loads(path.read_text(encoding="utf-8")), path)
            case _:
                raise ValueError(f"{path} is neither .parquet nor .jsonl nor .json.")


def _parquet(path: Path) -> Iterator[Source]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
            yield from batch.to_pylist()


def _json_lines(path: Path) -> Iterator[Source]:
    with path.open(encoding="utf-8") as file:
        yield from _objects((json.loads(line) for line in file if line.strip()), path)


def _objects(values: Any, path: Path) -> Iterator[Source]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"Row {number} of {path} is no object.")
        yield value
