"""What a compiled kernel takes of a GPU, read from what the compilers print. Needs no GPU, no torch and no Triton."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Shared memory in bytes that one block may have, by architecture; the keys are all the targets there are. NVIDIA:
#: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD: CDNA 3 ISA, local data share.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
_TENSOR_LIMIT = 512  # columns of tensor memory in a multiprocessor with compute capability 10
_RESERVED = 1024  # bytes of each block that the system keeps from compute capability 9 on, outside the limit above
_WIDE = 16  # bytes: the longest load that every architecture here has

_MMA = {"wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma": r"\bmma\.sync", "mfma": r"\bv_mfma"}
_PTX_LOAD = re.compile(r"\bld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)")
_PTX_BULK = re.compile(r"\bcp\.async\.bulk\.tensor\S*\.global\S* ")
_GCN_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(\w+)")


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture.

    ``registers`` of a thread (AMD: vector registers, accumulators among them); ``spills``: bytes stored and loaded
    (AMD: vector registers spilled); ``local``: bytes of a thread's memory for them, and for arrays; ``lanes``: AMD's
    scalar registers that wait in lanes of vector registers, at an instruction each way and no traffic (in memory they
    are ``local``); ``shared``: bytes of a block; ``tensor``: columns of tensor memory; ``mma``: kinds of matrix
    instructions; ``wide`` and ``narrow``: global load instructions of 16 bytes a thread or more, and of less;
    ``warnings``: codes of ptxas warnings.
    """

    registers: int
    spills: int
    local: int
    shared: int
    tensor: int
    mma: str
    wide: int
    narrow: int
    lanes: int = 0
    warnings: tuple[str, ...] = ()


def faults(found: Resources, arch: str) -> list[str]:
    """Why a kernel with these resources must not ship for ``arch``: nothing, or one phrase a reason."""
    reasons = []
    if found.spills:
        reasons.append(f"spills {found.spills} {'registers' if arch.startswith('gfx') else 'bytes'}")
    if found.local:
        reasons.append(f"{found.local} bytes of local memory")
    if found.shared > SHARED_LIMIT[arch]:
        reasons.append(f"{found.shared} bytes of shared memory, {arch} has {SHARED_LIMIT[arch]}")
    if found.tensor > _TENSOR_LIMIT:
        reasons.append(f"{found.tensor} columns of tensor memory, {arch} has {_TENSOR_LIMIT}")
    return reasons


def from_nvidia(arch: str, log: str, usage: str, ptx: str, dynamic: int, tensor: int) -> Resources:
    """From the log of ``ptxas -v``, ``cuobjdump --dump-resource-usage``, the PTX text, and the bytes of shared memory
    and columns of tensor memory that a launch asks for. Raises ValueError if the texts are not such, or disagree."""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    stated = [dict(re.findall(r"(\w+):(\d+)", line)) for line in usage.splitlines() if "REG:" in line]
    if not (used and spilled and stated):
        raise ValueError(f"ptxas or cuobjdump printed something unknown:\n{log}\n{usage}")
    registers, stack, local, static = (
        max(int(each[k]) for each in stated) for k in ("REG", "STACK", "LOCAL", "SHARED")
    )
    if registers != max(used):
        raise ValueError(f"ptxas says {max(used)} registers, cuobjdump {registers}")
    loads = [int(vector or 1) * int(bits) // 8 for vector, bits in _PTX_LOAD.findall(ptx)]
    loads += [int(size, 0) for size in _PTX_COPY.findall(ptx)]
    loads += [_WIDE] * len(_PTX_BULK.findall(ptx))
    wide = sum(size >= _WIDE for size in loads)
    reserved = _RESERVED if arch != "sm_80" else 0
    return Resources(
        registers=registers,
        spills=sum(int(stores) + int(loads) for _, stores, loads in spilled),
        local=max(stack, local),
        shared=dynamic + max(static - reserved, 0),
        tensor=tensor,
        mma=_kinds(ptx),
        wide=wide,
        narrow=len(loads) - wide,
        warnings=tuple(sorted(set(re.findall(r"\((C\d+)\)", log)))),
    )


def from_amd(text: str, dynamic: int) -> Resources:
    """From AMDGCN assembly text and the bytes of LDS that a launch asks for. Raises ValueError if it is not such."""
    stated = {name: int(value) for name, value in re.findall(r"^\s+(?:- )?\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    missing = {"vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"} - stated.keys()
    if missing:
        raise ValueError(f"AMDGCN text without {', '.join(sorted(missing))}")
    loads = _GCN_LOAD.findall(text)
    wide = sum(kind.startswith("dwordx4") for kind in loads)
    return Resources(
        registers=stated["vgpr_count"],
        spills=stated["vgpr_spill_count"],
        local=stated["private_segment_fixed_size"],
        shared=dynamic + stated["group_segment_fixed_size"],
        tensor=0,
        mma=_kinds(text),
        wide=wide,
        narrow=len(loads) - wide,
        lanes=stated["sgpr_spill_count"],
    )


def _kinds(text: str) -> str:
    return "+".join(kind for kind, pattern in _MMA.items() if re.search(pattern, text)) or "none"
