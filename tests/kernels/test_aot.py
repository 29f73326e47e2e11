"""Ahead-of-time compilation: faults are found and named, and the table cannot go out of date.

Whatever compiles runs in processes of its own: in this one kernels may be interpreted.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncthink_kernels import aot
from asyncthink_kernels._aot_records import Records

TOYS = (Path(__file__).parent / "aot_toys.py").read_text()
FINE = TOYS + 'def variants(arch):\n    return [copies("small", 512), copies("large", 2048)]\n'
FAULTY = TOYS + (
    "def variants(arch):\n"
    '    return [copies("fine", 512), dots("spilling", dict(D=64, M=64, N=32), 2, maxnreg=40),\n'
    '            dots("overflowing", dict(D=256, M=16, N=256), 4), copies("broken", 513),\n'
    '            copies("crashing", 512, options=Bomb())]\n'
)


def python(folder: Path, *arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python where modules of ``folder`` can be imported, kernels compiled or interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(folder)} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def run_aot(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = ["--module", "toys", "--records", str(folder / "table.json"), "--page", str(folder / "page.md")]
    return python(folder, "-m", "asyncthink_kernels.aot", *paths, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sm_75"], "invalid choice: 'sm_75'"),
        (["--match", "("], "'(' is no regular expression"),
        (["--jobs", "0"], "expected a number of processes, got '0'"),
        (["--check", "--sample"], "not allowed with"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        aot.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_interpreted_kernels_are_refused(tmp_path: Path) -> None:
    done = python(tmp_path, "-m", "asyncthink_kernels.aot", "--check", interpret=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "aot: TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it\n"


def test_all_faults_are_named(tmp_path: Path) -> None:
    """A spill, too much shared memory, an error and a crash of the compiler in one run; what compiled is kept."""
    (tmp_path / "toys.py").write_text(FAULTY)
    done = run_aot(tmp_path, "--arch", "sm_80", "--update", "--json")
    assert done.returncode == 1, done.stderr
    problems = dict(text.split(" on sm_80", 1) for text in json.loads(done.stdout)["problems"])
    assert set(problems) == {"spilling", "overflowing", "broken", "crashing"}
    assert re.match(r": spills \d+ bytes, \d+ bytes of local memory", problems["spilling"])
    assert re.match(r": \d+ bytes of shared memory, sm_80 has 166912", problems["overflowing"])
    assert "arange's range must be a power of 2" in problems["broken"]
    assert problems["crashing"].endswith("the compiler crashed")
    assert {each.name for each in Records.load(tmp_path / "table.json").records} == {"fine", "spilling", "overflowing"}


LIFE = """
import contextlib, dataclasses, io, json, pathlib
from asyncthink_kernels import aot
from asyncthink_kernels._aot_pool import variants
from asyncthink_kernels._aot_records import Records, page
from asyncthink_kernels.backends.triton._compile import key

TABLE, PAGE = pathlib.Path("table.json"), pathlib.Path("page.md")

def run(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        places = ["--module", "toys", "--records", str(TABLE), "--page", str(PAGE)]
        code = aot.main([*places, "--jobs", "1", "--json", *arguments])
    told = json.loads(out.getvalue())
    return code, told["compiled"], "; ".join(told["problems"] + told["notes"])

def write(table):
    TABLE.write_text(table.to_text())
    PAGE.write_text(page(table))

def main():
    seen = {}
    seen["no table"] = run("--check")
    seen["a part"] = run("--update", "--arch", "sm_80", "--match", "^small")
    seen["the rest"] = run("--update")
    seen["cached"] = run()
    seen["check"] = run("--check")
    seen["sample"] = run("--sample", "--arch", "gfx942", "--arch", "sm_90")
    good = Records.load(TABLE)
    first = good.records[0]

    write(Records(good.triton, good.records[1:]))
    seen["missing"] = run("--check")
    seen["missing elsewhere"] = run("--check", "--match", "^small")
    write(Records(good.triton, (*good.records, dataclasses.replace(first, name="gone", key="0" * 16))))
    seen["stale"] = run("--check")
    worse = dataclasses.replace(first.resources, registers=7, spills=4)
    write(Records(good.triton, (dataclasses.replace(first, resources=worse), *good.records[1:])))
    seen["spill in the table"] = run("--check")
    seen["other figures"] = run("--sample", "--arch", first.arch, "--match", first.name)
    write(good)
    PAGE.write_text("# Old")
    seen["page"] = run("--check")
    old = [dataclasses.replace(each, key=key(variants("toys", each.arch)[each.name], each.arch, "1.0"))
           for each in good.records]
    write(Records("1.0", tuple(old)))
    seen["other Triton"] = run("--check", "--arch", "sm_80")
    print(json.dumps(seen))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_life_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "toys.py").write_text(FINE)
    (tmp_path / "life.py").write_text(LIFE)
    done = python(tmp_path, "life.py")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    def expect(step: str, code: int, compiled: int, *texts: str) -> None:
        assert seen[step][:2] == [code, compiled], (step, seen[step])
        assert all(text in seen[step][2] for text in texts) and bool(seen[step][2]) == bool(texts), (step, seen[step])

    expect("no table", 1, 0, "small on sm_80 is not in table.json", "large on gfx942 is not", "--update")
    expect("a part", 0, 1)
    expect("the rest", 0, 7)
    expect("cached", 0, 0)
    expect("check", 0, 0)
    expect("sample", 0, 2)
    expect("missing", 1, 0, "large on sm_80 is not in table.json")
    expect("missing elsewhere", 0, 0)
    expect("stale", 1, 0, "gone on sm_80 in table.json is out of date")
    expect("spill in the table", 1, 0, "large on sm_80: spills 4 bytes")
    expect("other figures", 1, 1, "large on sm_80: registers", "the table says 7", "spills 0, the table says 4")
    expect("page", 1, 0, "page.md is not what table.json says")
    expect("other Triton", 0, 2, "compiled by Triton 1.0, this is Triton")


KEYS = """
import dataclasses, json, pathlib, importlib, sys
from asyncthink_kernels.backends.triton._compile import compile_variant, key

text = pathlib.Path("toys.py").read_text()

def keyed(name, *edits):
    changed = text
    for old, new in edits:
        assert old in changed
        changed = changed.replace(old, new)
    folder = pathlib.Path(name)
    folder.mkdir()
    (folder / "toys.py").write_text(changed)
    sys.path.insert(0, str(folder))
    sys.modules.pop("toys", None)
    return importlib.import_module("toys").variants("sm_80")[0]

one = keyed("one")
same = {"comment": keyed("a", ("# nothing", "# something else")), "docstring": keyed("b", ("Doubles", "Twice"))}
same["line"] = keyed("c", ("import os", "import os\\n\\n"))
other = {
    "source": keyed("d", ("at < n)),", "at <= n)),")),
    "callee": keyed("e", ("x * FACTOR", "FACTOR + x")),
    "global": keyed("f", ("constexpr(2.0)", "constexpr(3.0)")),
    "name": dataclasses.replace(one, name="another"),
    "types": dataclasses.replace(one, types=one.types | {"n": "i64"}),
    "constants": dataclasses.replace(one, constants={"BLOCK": 256}),
    "kind of constant": dataclasses.replace(one, constants={"BLOCK": 512.0}),
    "aligned": dataclasses.replace(one, aligned=frozenset({"source"})),
    "warps": dataclasses.replace(one, num_warps=8),
    "stages": dataclasses.replace(one, num_stages=2),
    "options": dataclasses.replace(one, options={"enable_fp_fusion": False}),
}
keys = {name: key(variant, "sm_80") for name, variant in other.items()}
keys |= {"architecture": key(one, "sm_90"), "version": key(one, "sm_80", "1.0")}
refused = {}
for name, wrong in {
    "missing": dataclasses.replace(one, constants={}),
    "unknown": dataclasses.replace(one, constants={"BLOCK": 512, "OTHER": 1}),
    "twice": dataclasses.replace(one, constants={"BLOCK": 512, "n": 1}),
    "aligned": dataclasses.replace(one, aligned=frozenset({"BLOCK"})),
}.items():
    try:
        compile_variant(wrong, "sm_80")
    except ValueError as error:
        refused[name] = str(error)
print(json.dumps([key(one, "sm_80"), [key(each, "sm_80") for each in same.values()], keys, refused]))
"""


def test_what_the_key_follows_from(tmp_path: Path) -> None:
    text = FINE.replace("    at = tl", "    # nothing\n    at = tl")
    (tmp_path / "toys.py").write_text(text)
    done = python(tmp_path, "-c", KEYS)
    assert done.returncode == 0, done.stderr
    first, same, others, refused = json.loads(done.stdout)
    assert same == [first] * 3, "comments, docstrings and line numbers do not count"
    assert len({first, *others.values()}) == 1 + len(others), others
    assert {name: text.rpartition(" ")[2] for name, text in refused.items()} == {
        "missing": "BLOCK",
        "unknown": "OTHER",
        "twice": "n",
        "aligned": "BLOCK",
    }


def test_the_committed_table_is_what_the_code_demands(tmp_path: Path) -> None:
    """Every variant of every kernel is in it, with no spill and no more shared memory than there is."""
    done = python(tmp_path, "-m", "asyncthink_kernels.aot", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
