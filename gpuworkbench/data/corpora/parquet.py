"""Parquet files as documents, through pyarrow (the extra `data`): a record a row, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from gpuworkbench.data.corpora.documents import Document
from gpuworkbench.data.corpora.records import CHAT, KNOWN_KEYS, Layout, LossOn, RecordError, document_of, layout_of
from gpuworkbench.data.location import open_regular
from gpuworkbench.errors import DataError

SUFFIX = ".parquet"
_BATCH_ROWS = 1024


def count_rows(path: Path) -> int:
    """Rows, from the file's footer. Raises DataError."""
    with _opened(path) as (file, _):
        return int(file.metadata.num_rows)


def text_bytes(path: Path) -> int:
    """Uncompressed size of the columns that are read. Raises DataError."""
    with _opened(path) as (file, layout):
        metadata, total = file.metadata, 0
        for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
            columns = (group.column(number) for number in range(group.num_columns))
            total += sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in layout.keys)
        return int(total)


def parquet_documents(path: Path, name: str, loss_on: LossOn) -> Iterator[Document]:
    """A document a row, of group `name:row`. DataError names file and row (from 1)."""
    with _opened(path) as (file, layout):
        number = 0
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(layout.keys)):
                for row in _rows(path, batch, number):
                    number += 1
                    try:
                        record = msgspec.convert(row, layout.type)
                        document = document_of(f"{name}:{number}", record, layout, loss_on)
                    except (RecordError, msgspec.MsgspecError) as error:
                        raise DataError(f"{path} row {number}: {error}", _hint(layout)) from error
                    yield document


def _rows(path: Path, batch: Any, n_before: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        rows_here = f"rows {n_before + 1} to {n_before + batch.num_rows}"
        raise DataError(
            f"{path} {rows_here}: a string is not UTF-8 ({error.reason})", "write the file again"
        ) from error
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Layout]]:
    """The file and the layout that its columns show. DataError for whatever pyarrow makes of a damaged file."""
    pa, pq = _pyarrow(path)
    try:
        with open_regular(path) as stream, pq.ParquetFile(stream) as file:
            yield file, _layout(path, file.schema_arrow, pa)
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"cannot read parquet file {path}: {reason}", "is it whole? write or download it again"
        ) from error


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow  # heavy and optional
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path} is a parquet file, and reading it needs pyarrow, which is not installed",
            "pip install 'gpuworkbench[data]'",
        ) from error
    return pyarrow, pyarrow.parquet


def _layout(path: Path, schema: Any, pa: Any) -> Layout:
    layout = layout_of(schema.names)
    if layout is None:
        found = ", ".join(repr(name) for name in schema.names[:8]) or "no columns"
        raise DataError(
            f"{path} has none of the columns {KNOWN_KEYS}, but {found}", "rename the column that holds text"
        )
    for key in layout.keys:
        if schema.names.count(key) > 1:
            raise DataError(f"{path} has {schema.names.count(key)} columns of the name {key!r}", "keep one")
        kind = schema.field(key).type
        if not (_is_messages(kind, pa.types) if layout is CHAT else _is_string(kind, pa.types)):
            wanted = "a list of structs with strings role and content" if layout is CHAT else "string"
            raise DataError(f"{path}: column {key!r} is {kind}, not {wanted}", "convert the column")
    return layout


def _is_string(kind: Any, types: Any) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_messages(kind: Any, types: Any) -> bool:
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    item = kind.value_type
    if not types.is_struct(item):
        return False
    fields = {item.field(number).name: item.field(number).type for number in range(item.num_fields)}
    return all(key in fields and _is_string(fields[key], types) for key in ("role", "content"))


def _hint(layout: Layout) -> str:
    return f"each row must be {layout.description}, without nulls"
