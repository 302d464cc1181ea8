"""Writes tests/golden/rows: the same three conversations as Parquet with each usual compression.

    python scripts/golden_rows.py        # needs pyarrow
"""
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/rows"
OUT.mkdir(parents=True, exist_ok=True)
turns = [[{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}."}] for i in range(3)]
table = pa.table({"messages": turns, "topic": ["a", None, "c"], "number": [1, 2, 3]})
for compression in ["none", "snappy", "gzip", "zstd"]:
    pq.write_table(table, OUT / f"{compression}.parquet", compression=compression, store_schema=False)
