"""Run as a program, without a GPU: the matrix layouts that the tiles of each family compile to on an architecture.

tile_probe.py sm_90 prints a JSON object {family: {tile: [layouts of its matrix instructions]}}.
"""

from __future__ import annotations

import importlib
import json
import re
import sys

import triton_compile

#: The kernel module; the package's attribute of that name is the op.
MODULE = importlib.import_module("asyncthink_kernels.backends.triton.tree_attention")
FAMILY = re.compile(r"tree_items-(bf16-d(?:64|128|192-dv128|256)|fp32-d128)-(m\d+n\d+)$")
LAYOUT = re.compile(r"^#\w+ = #ttg\.((?:nvidia|amd)_\w+<.*>)$", re.MULTILINE)


def main(arch: str) -> None:
    found: dict[str, dict[str, list[str]]] = {}
    for variant in MODULE.variants(arch):
        match = FAMILY.match(variant.name)
        if match:
            found.setdefault(match[1], {})[match[2]] = LAYOUT.findall(triton_compile.intermediate(variant, arch))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
