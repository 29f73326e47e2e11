"""Ahead-of-time compilation: faults are found and named, and the page cannot go out of date.

Whatever compiles runs in processes of its own: in this one kernels may be interpreted.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import kernel_report
from gpu_resources import Resources
from kernel_page import Page, Row, kib

HERE = Path(__file__).parent
TOYS = (HERE / "toy_kernels.py").read_text()
FINE = TOYS + 'def variants(arch):\n    return [copies("small", 512), copies("large", 2048)]\n'
FAULTY = TOYS + (
    "def variants(arch):\n"
    '    return [copies("fine", 512), dots("spilling", dict(D=64, M=64, N=32), 2, maxnreg=40),\n'
    '            dots("overflowing", dict(D=256, M=16, N=256), 4), copies("broken", 513),\n'
    '            copies("crashing", 512, options=Bomb())]\n'
)


def python(folder: Path, *arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python where modules of ``folder`` can be imported, kernels compiled or interpreted."""
    paths = os.pathsep.join([str(folder), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": paths} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def report(folder: Path, *arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    return python(folder, str(HERE / "kernel_report.py"), *arguments, interpret=interpret)


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
        kernel_report.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_interpreted_kernels_are_refused(tmp_path: Path) -> None:
    done = report(tmp_path, "--check", interpret=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it\n"


def test_names_of_variants_differ(tmp_path: Path) -> None:
    (tmp_path / "toys.py").write_text(TOYS + 'def variants(arch):\n    return [copies("a", 512), copies("a", 1024)]\n')
    done = report(tmp_path, "--module", "toys")
    assert (done.returncode, done.stderr) == (2, "names of variants must differ, got a more than once\n")


@pytest.mark.slow
def test_all_faults_are_named(tmp_path: Path) -> None:
    """A spill, too much shared memory, an error and a crash of the compiler in one run; what compiles is listed."""
    (tmp_path / "toys.py").write_text(FAULTY)
    done = report(tmp_path, "--module", "toys", "--arch", "sm_80")
    assert done.returncode == 1, done.stderr
    problems: dict[str, list[str]] = {}
    for name, text in re.findall(r"^(\w+) on sm_80(.*)", done.stdout, re.MULTILINE):
        problems.setdefault(name, []).append(text)
    assert set(problems) == {"spilling", "overflowing", "broken", "crashing"}
    assert re.match(r": spills \d+ bytes", problems["spilling"][0])
    assert re.match(r": \d+ bytes of local memory", problems["spilling"][1])
    assert re.match(r": \d+ bytes of shared memory, sm_80 has 166912", problems["overflowing"][0])
    assert "arange's range must be a power of 2" in problems["broken"][0]
    assert problems["crashing"] == [" does not compile: the compiler crashed"]
    assert re.findall(r"^(\w+) +sm_80 ", done.stdout, re.MULTILINE) == ["fine", "overflowing", "spilling"]


GOOD = Resources(registers=64, spills=0, local=0, shared=1024, tensor=0, mma="none", wide=4, narrow=1)


def test_a_row_holds_the_largest_figures(tmp_path: Path) -> None:
    spilling = Resources(32, 8, 0, 2560, 0, "wgmma+mma", wide=4, narrow=1)
    large = Resources(32, 0, 0, (227 << 10) + 1, 0, "mma", wide=4, narrow=1)
    row = Row.of("k", "sm_90", [GOOD, spilling, large], "0" * 16)
    assert row.cells == ("k", "sm_90", "3", "64", "227", "227", "2", "mma, wgmma", "0" * 16)
    assert row.faults == ["k on sm_90: 2 of 3 variants spill or need too much memory"]
    good = Row.of("k", "sm_80", [GOOD], "1" * 16)
    assert good.faults == [] == good.exceeded_by(GOOD)
    assert good.exceeded_by(Resources(65, 0, 0, 2048, 0, "mma", 0, 0)) == [
        "65 registers, the page says at most 64",
        "2 KiB of shared memory, the page says at most 1",
        "mma instructions, the page says none",
    ]
    path = tmp_path / "page.md"
    path.write_text(Page("3.7.1", [row, good]).text())
    assert Page.read(path) == Page("3.7.1", (good, row)), "by architecture, the oldest first"
    path.write_text(Page("3.7.1", []).text().replace("Triton 3.7.1", "no version"))
    with pytest.raises(ValueError, match=r"page.md is no page of kernels: it names no version of Triton"):
        Page.read(path)
    assert [kib(1024), kib(2560)] == ["1", "2.5"]


LIFE = """
import contextlib, dataclasses, io, json, pathlib
import kernel_report
from kernel_page import Page

PAGE = pathlib.Path("page.md")

def run(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = kernel_report.main(["--module", "toys", "--page", str(PAGE), "--jobs", "1", *arguments])
    return code, out.getvalue()

def main():
    seen = {}
    seen["no page"] = run("--check")
    seen["made"] = run("--update")
    good = Page.read(PAGE)
    seen["cached"] = run("--update")
    seen["check"] = run("--check")
    seen["sample"] = run("--sample")
    first, *rest = good.rows

    def write(*rows, version=good.triton):
        PAGE.write_text(Page(version, rows).text())

    write(*rest)
    seen["missing"] = run("--check")
    seen["made again"] = run("--update")
    assert Page.read(PAGE) == good
    write(*good.rows, dataclasses.replace(first, kernel="gone"))
    seen["gone"] = run("--check")
    write(dataclasses.replace(first, key="0" * 16), *rest)
    seen["changed"] = run("--check")
    write(dataclasses.replace(first, faulty=1), *rest)
    seen["spill on the page"] = run("--check")
    write(dataclasses.replace(first, registers=7), *rest)
    seen["other figures"] = run("--sample")
    write(*good.rows)
    PAGE.write_text("# Old" + PAGE.read_text())
    seen["prose"] = run("--check")
    groups = kernel_report.groups(["toys"])
    write(*(dataclasses.replace(row, key=groups[row.kernel, row.arch].key("1.0")) for row in good.rows), version="1.0")
    seen["other Triton"] = run("--check")
    seen["other Triton, sample"] = run("--sample")
    PAGE.write_text("nothing")
    seen["no such page"] = run("--check")
    print(json.dumps(seen))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_life_of_a_page(tmp_path: Path) -> None:
    (tmp_path / "toys.py").write_text(FINE)
    (tmp_path / "life.py").write_text(LIFE)
    done = python(tmp_path, "life.py")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    def expect(step: str, code: int, *texts: str) -> None:
        assert seen[step][0] == code, (step, seen[step])
        assert all(text in seen[step][1] for text in texts), (step, seen[step])

    fine = "nothing spills, all fits"
    expect("no page", 1, "copy on sm_80 is not in page.md", "copy on gfx942 is not", "--update")
    expect("made", 0, "page.md: 8 compiled by Triton", "8 in all", fine)
    expect("cached", 0, "page.md: 0 compiled by Triton", "8 in all", fine)
    expect("check", 0, fine)
    expect("sample", 0, "4 compiled by Triton", fine)
    expect("missing", 1, "copy on sm_80 is not in page.md")
    expect("made again", 0, "page.md: 2 compiled by Triton", "8 in all")
    expect("gone", 1, "gone on sm_80 in page.md is out of date")
    expect("changed", 1, "copy on sm_80 in page.md is out of date")
    expect("spill on the page", 1, "copy on sm_80: 1 of 2 variants spill")
    expect("other figures", 1, "on sm_80: ", "registers, the page says at most 7")
    expect("prose", 1, "page.md differs")
    expect("other Triton", 0, fine)
    expect("other Triton, sample", 0, "the page by 1.0", fine)
    expect("no such page", 2)


KEYS = """
import dataclasses, json, pathlib, importlib, sys
from triton_compile import compile_variant, key

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


def test_the_committed_page_is_what_the_code_demands(tmp_path: Path) -> None:
    """It has a row for every kernel and target, and no variant spills or needs more shared memory than there is."""
    done = report(tmp_path, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_no_kernel_spills_as_compiled_now(tmp_path: Path) -> None:
    """One variant of each kernel and target, compiled anew, stays within the figures of the page."""
    done = report(tmp_path, "--sample")
    assert done.returncode == 0, done.stdout + done.stderr
