"""Resources of compiled kernels: read from compilers' output as recorded, and judged."""

import re
from dataclasses import replace

import pytest

from gpu_resources import SHARED_LIMIT, Resources, faults, from_amd, from_nvidia

PTXAS_LOG = """\
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
register resources for the wgmma pipeline in the function 'dot'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'dot' for 'sm_90a'
ptxas info    : Function properties for dot
    1024 bytes stack frame, 2608 bytes spill stores, 2096 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes cumulative stack size
ptxas info    : Compile time = 587.086 ms
"""
CUOBJDUMP = """
Resource usage:
 Common:
  GLOBAL:0
 Function dot:
  REG:255 STACK:1024 SHARED:1024 LOCAL:0 CONSTANT[0]:576 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
PTX = """
	cp.async.cg.shared.global [ %r366 + 0 ], [ %rd35 + 0 ], 0x10, %r367;
	cp.async.ca.shared.global [ %r366 + 0 ], [ %rd35 + 0 ], 0x4, %r367;
	@%p2 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd7 + 0 ];
	@%p2 ld.global.b32 { %r1 }, [ %rd7 + 0 ];
	ld.global.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd7 + 0 ];
	wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%r1}, %rd3, %rd4, 1, 1, 1, 0, 1;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
"""
AMDGCN = """
	global_load_dwordx4 v[2:5], v[2:3], off
	buffer_load_dword v4, v5, s[0:3], 0 offen
	v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], 0
		.amdhsa_private_segment_fixed_size 12
amdhsa.kernels:
  - .agpr_count:     256
    .args:
      - .address_space:  global
        .size:           8
    .group_segment_fixed_size: 512
    .name:           dot
    .private_segment_fixed_size: 5756
    .sgpr_count:     20
    .sgpr_spill_count: 2
    .vgpr_count:     512
    .vgpr_spill_count: 3338
"""
GOOD = Resources(registers=64, spills=0, local=0, shared=1024, tensor=0, mma="none", wide=4, narrow=1)


def test_reads_ptxas_and_cuobjdump() -> None:
    found = from_nvidia("sm_90", PTXAS_LOG, CUOBJDUMP, PTX, dynamic=4096, tensor=0)
    assert found == Resources(255, 2608 + 2096, 1024, 4096, 0, "wgmma+mma", wide=3, narrow=2, warnings=("C7511",))
    assert from_nvidia("sm_80", PTXAS_LOG, CUOBJDUMP, "", 4096, 0).shared == 4096 + 1024  # nothing reserved there
    with pytest.raises(ValueError, match="ptxas says 255 registers, cuobjdump 254"):
        from_nvidia("sm_90", PTXAS_LOG, CUOBJDUMP.replace("255", "254"), PTX, 0, 0)
    with pytest.raises(ValueError, match="unknown"):
        from_nvidia("sm_90", PTXAS_LOG.replace("spill stores", "spills"), CUOBJDUMP, PTX, 0, 0)


def test_reads_amdgcn() -> None:
    found = from_amd(AMDGCN, dynamic=4096)
    assert found == Resources(512, 3338, 5756, 4096 + 512, 0, "mfma", wide=1, narrow=1, lanes=2)
    with pytest.raises(ValueError, match="without sgpr_spill_count"):
        from_amd(AMDGCN.replace("sgpr_spill", "scalar_spill"), 0)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_faults(arch: str) -> None:
    limit = SHARED_LIMIT[arch]
    assert faults(replace(GOOD, shared=limit), arch) == []
    assert faults(replace(GOOD, shared=limit + 1), arch) == [f"{limit + 1} bytes of shared memory, {arch} has {limit}"]
    assert re.fullmatch("spills 8 (bytes|registers)", *faults(replace(GOOD, spills=8), arch))
    assert faults(replace(GOOD, local=8), arch) == ["8 bytes of local memory"]
    assert faults(replace(GOOD, tensor=513), arch) == [f"513 columns of tensor memory, {arch} has 512"]
