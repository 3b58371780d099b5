"""Prints constraints.txt from the report of `pip install --dry-run --report FILE`.

Left out: this package, local versions ("+cpu"), which other machines lack, and what torch's CUDA builds pin themselves.
"""

import json
import re
import sys
from pathlib import Path

PINNED_BY_TORCH = re.compile(r"(nvidia|cuda|triton)\b|vita.mctp")

metadata = [item["metadata"] for item in json.loads(Path(sys.argv[1]).read_text())["install"]]
pins = [f"{entry['name']}=={entry['version'].partition('+')[0]}" for entry in metadata]
print("# The versions that CI tests. Made anew by `make constraints`; not edited by hand.")
print(*sorted((pin for pin in pins if not PINNED_BY_TORCH.match(pin)), key=str.lower), sep="\n")
