"""Prints a pip constraint for each lower bound that pyproject.toml states: `name>=1.2` becomes `name==1.2`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = sum(project["optional-dependencies"].values(), start=project["dependencies"])
for requirement in requirements:
    if bound := re.match(r"([\w.-]+)(?:\[.*?\])?>=([\w.]+)", requirement):
        print("==".join(bound.groups()))
