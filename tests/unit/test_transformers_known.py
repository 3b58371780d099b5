"""`import vita_mctp` makes the models known to transformers, in any order of imports, and imports nothing for it."""

import subprocess
import sys
from pathlib import Path

import pytest

NANO = Path(__file__).parents[2] / "vita_mctp" / "assets" / "nano"

_LOAD = """
model = AutoModelForCausalLM.from_pretrained({nano!r})
print(type(model).__name__, type(AutoConfig.from_pretrained({nano!r})).__name__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import vita_mctp\nfrom transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM\nimport vita_mctp",
        "from vita_mctp.models.vita import VitaMctpConfig\nfrom transformers import AutoConfig, AutoModelForCausalLM",
        "import vita_mctp\nfrom transformers import Qwen2Model, AutoConfig, AutoModelForCausalLM",
    ],
    ids=["before", "behind", "by its own", "from within"],
)
def test_transformers_knows_the_models(imports: str) -> None:
    script = imports + _LOAD.format(nano=str(NANO))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["VitaMctpForCausalLM", "VitaMctpConfig"], done.stderr


def test_a_configuration_alone_is_known_too() -> None:
    script = f"import vita_mctp\nfrom transformers import AutoConfig\nprint(AutoConfig.from_pretrained({str(NANO)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("VitaMctpConfig"), done.stderr


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys, vita_mctp; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split()
    assert {"torch", "transformers", "numpy", "onnxruntime", "tqdm"}.isdisjoint(loaded)
