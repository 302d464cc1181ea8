// Single IEEE operations that the compiler may not fuse: results that equal the CPU's, bit for bit.
#pragma once
#include "prelude.cuh"

DEV float mul_rn(float a, float b) { return TWIN(__fmul_rn(a, b), a * b); }
DEV float add_rn(float a, float b) { return TWIN(__fadd_rn(a, b), a + b); }
DEV double mul_rn(double a, double b) { return TWIN(__dmul_rn(a, b), a * b); }
DEV double add_rn(double a, double b) { return TWIN(__dadd_rn(a, b), a + b); }
