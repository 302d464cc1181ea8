#!/usr/bin/env bash
# Builds a libnccl.so.2 that sums and gathers over shared memory between processes on emulated GPUs (kernels/emulator/driver/libnccl.cpp), so that training by several
# ranks can be rehearsed on one machine without a GPU:
#   scripts/rehearsal_nccl.sh [FOLDER]                                     default: target/rehearsal
#   SDRRL_NCCL=target/rehearsal mpirun -n 2 sdrrl train --device emulated ...
# SDRRL_REHEARSAL_NCCL plants faults, SDRRL_REHEARSAL_NCCL_LOG counts bytes: see the source. Needs a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/rehearsal} source=kernels/emulator/driver/libnccl.cpp
library=$folder/libnccl.so.2
if [ "$library" -nt "$source" ]; then exit 0; fi
mkdir -p "$folder"
"${CXX:-c++}" -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -Wl,-soname,libnccl.so.2 -Wl,-z,defs "$source" -ldl -lpthread -o "$library.$$"
mv "$library.$$" "$library"
