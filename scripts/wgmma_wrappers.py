#!/usr/bin/env python3
"""Writes the inline PTX of wgmma: kernels/include/wgmma_generated.cuh for the tile widths that kernels use, and for the emulator's tests one
more width, with e4m3 from registers (kernels/emulator/tests/kernels/wgmma_32.cuh)."""
import pathlib


def call(n, name, params, ptx_type, k, a_operands, inputs, tail, template=""):
    r = n // 2
    regs = ", ".join(f"%{i}" for i in range(r))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(r))
    first = r
    names = [f"%{first + i}" for i in range(len(inputs))]
    a = "{" + ", ".join(names[:4]) + "}" if a_operands == 4 else names[0]
    b = names[a_operands]
    pred = names[a_operands + 1]
    rest = ", ".join(["p", "1", "1", *(names[a_operands + 2 :])])
    return f"""  {template}static __device__ __forceinline__ void {name}({params}) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, {pred}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{ptx_type}.{ptx_type} {{{regs}}}, {a}, {b}, {rest};\\n}}\\n"
      : {outs} : {", ".join(inputs)});
  }}
"""


def struct(n, extra=""):
    d = f"float (&d)[{n // 2}]"
    desc = ['"l"(da)', '"l"(db)', '"r"(scale_d)']
    regs = [f'"r"(a[{i}])' for i in range(4)] + ['"l"(db)', '"r"(scale_d)']
    return (
        f"template <> struct Wgmma<{n}> {{\n"
        + call(n, "bf16_ss", f"{d}, uint64_t da, uint64_t db, int scale_d", "bf16", 16, 1, desc + ['"n"(TA)', '"n"(TB)'], "", "template <int TA, int TB> ")
        + call(n, "bf16_rs", f"{d}, const uint32_t (&a)[4], uint64_t db, int scale_d", "bf16", 16, 4, regs + ['"n"(TB)'], "", "template <int TB> ")
        + call(n, "e4m3_ss", f"{d}, uint64_t da, uint64_t db, int scale_d", "e4m3", 32, 1, desc, "")
        + extra
        + "};\n"
    )


def e4m3_rs(n):
    regs = [f'"r"(a[{i}])' for i in range(4)] + ['"l"(db)', '"r"(scale_d)']
    return call(n, "e4m3_rs", f"float (&d)[{n // 2}], const uint32_t (&a)[4], uint64_t db, int scale_d", "e4m3", 32, 4, regs, "")


kernels = pathlib.Path(__file__).parent.parent / "kernels"
HEAD = "// Written by scripts/wgmma_wrappers.py.\n"
(kernels / "include/wgmma_generated.cuh").write_text(HEAD + "".join(struct(n) for n in (64, 128, 256)))
(kernels / "emulator/tests/kernels/wgmma_32.cuh").write_text(HEAD + struct(32, e4m3_rs(32)))
