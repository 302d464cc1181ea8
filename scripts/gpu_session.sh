#!/usr/bin/env bash
# Everything that a GPU can tell about this program, in the order of its worth, within a time. In a bundle of scripts/gpu_bundle.sh this file is run.sh.
#   run.sh [--out DIR] [--archive FILE] [--minutes N] [--device cuda|emulated] [--small] [PART ...]
# Parts (all, if none is named; in this order):
#   correctness  every declared kernel case and whole step; what fails, hangs or was not reached is run again alone
#   calibration  the emulator's own cases on the chip: layouts, barriers, driver's rules, arithmetic
#   quickstart   its training on the device beside the same on the processor
#   parity       20 LoRA steps of a model of 1.1 billion parameters beside transformers + peft
#   ranks        LoRA steps by one and by two ranks over NCCL, where there are two GPUs, whole and in parts: the same bytes
#   mutants      which planted faults the chip shows
#   sanitizers   racecheck, memcheck, synccheck, initcheck over the cases
#   kernels      the table of kernels beside PyTorch, up to three rounds in turn
#   steps        whole LoRA steps, packed, beside transformers + peft
#   ncu          hardware counters of the five rows that are furthest behind; the emulator's counts of bank conflicts and sectors beside the chip's
#   generation   greedy generation beside transformers
# DIR (default: results) gets PART.jsonl, a line at a time, so that a run cut off anywhere leaves valid results; logs; and, at the end, report.json and report.md
# (scripts/gpu_report.py, which also joins several DIRs). A part that does not fit the time left is named and left out. FILE, a .tar.gz, gets all of DIR after each part.
# Where a case of the Hopper products failed, what follows runs without them (SDRRL_GEMM=mma128) and says so.
# --small takes tiny sizes, to rehearse on a machine without a GPU (scripts/rehearsal_driver.sh); its figures mean nothing.
set -uo pipefail
cd "$(dirname "$0")" || exit
all=(correctness calibration quickstart parity ranks mutants sanitizers kernels steps ncu generation)
out=results archive="" minutes=25 device=cuda small="" parts=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?}; shift 2 ;;
    --archive) archive=$(realpath -m "${2:?}"); shift 2 ;;
    --minutes) minutes=${2:?}; shift 2 ;;
    --device) device=${2:?}; shift 2 ;;
    --small) small=yes; shift ;;
    *) if [[ " ${all[*]} " == *" $1 "* ]]; then parts+=("$1"); shift; else sed -n '2,19p' "$(basename "$0")" >&2; exit 2; fi ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
[ "$device" = emulated ] && small=yes
mkdir -p "$out"
out=$(cd "$out" && pwd)
ends=$(($(date +%s) + minutes * 60))
python=$(command -v python3 || true)
export SDRRL_BIN=$PWD/sdrrl PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/inductor}
# Where some machines keep libcuda without telling the linker.
[ -d /usr/local/nvidia/lib64 ] && export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64

# A string as JSON.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\010\013-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
# record PART MEMBERS: a line of PART.jsonl.
record() { printf '{%s}\n' "$2" >>"$out/$1.jsonl"; }
# room BEGUN SECONDS: what is left of a part's seconds.
room() { echo $(($1 + $2 - SECONDS)); }
has_python() { [ -n "$python" ] && "$python" -c "import $1" 2>/dev/null; }
# skip PART WHY
skip() { record "$1" "\"skipped\": $(quote "$2")"; echo "skipped: $2"; }
# The last line of a log that says what went wrong, or simply the last.
reason() { { tail -n 1 "$1"; grep -aE 'panicked|relative error|error|Error|expected|CUDA says' "$1" | grep -v '^test .*\.\.\. ok\|^error: test failed'; } | tail -n 1 | cut -c1-300; }
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
machine() {
    printf '{"date": %s, "commit": %s, "device": %s, "small": %s, "gpu": %s, "driver": %s, "power_limit": %s, "clocks_sm": %s, "clocks_memory": %s, "cores": %d, "torch": %s}\n' \
        "$(quote "$(date -u +%Y-%m-%dT%H:%M:%SZ)")" "$(quote "$(cat commit 2>/dev/null)")" "$(quote "$device")" "$([ -n "$small" ] && echo true || echo false)" \
        "$(quote "$(gpu name)")" "$(quote "$(gpu driver_version)")" "$(quote "$(gpu power.limit)")" "$(quote "$(gpu clocks.max.sm)")" \
        "$(quote "$(gpu clocks.max.mem)")" "$(nproc)" "$(quote "$([ -n "$python" ] && "$python" -c 'import torch; print(torch.__version__)' 2>/dev/null)")"
}

# cases SECONDS LOG NAME ...: those cases, one after another in one process; 124 if time is over or one case takes too long: the log grows with each.
cases() {
    local ends=$((SECONDS + $1)) log=$2 last=-1 grown=$SECONDS size status
    shift 2
    SDRRL_TEST_DEVICE=$device tests/all --exact "$@" --test-threads 1 >"$log" 2>&1 &
    local process=$!
    while sleep 0.2 && kill -0 $process 2>/dev/null; do
        size=$(stat -c %s "$log")
        [ "$size" = "$last" ] || { last=$size grown=$SECONDS; }
        [ $SECONDS -lt $ends ] && [ $((SECONDS - grown)) -lt $stuck ] && continue
        kill $process
        sleep 1
        kill -9 $process 2>/dev/null
        wait $process 2>/dev/null
        return 124
    done
    wait $process
}
# Seconds without a word after which a case counts as hung.
stuck=25
correctness() {
    local begun=$SECONDS left=() again=() round=0 limit=150 bad=0 name log
    mapfile -t left < <(tests/all kernels:: --list --format terse 2>/dev/null | sed -n 's/: test$//p')
    [ ${#left[@]} -gt 0 ] || { record correctness '"error": "the test program lists no case"'; return 1; }
    [ -n "$small" ] && mapfile -t left < <(printf '%s\n' "${left[@]}" | grep -v quickstart)
    # A process that ends early goes on behind the case that ended it.
    while [ ${#left[@]} -gt 0 ] && [ "$(room "$begun" "$1")" -gt 20 ]; do
        round=$((round + 1)) log=$out/correctness.$round.log
        [ "$(room "$begun" "$1")" -lt $limit ] && limit=$(room "$begun" "$1")
        cases "$limit" "$log" "${left[@]}"
        local before=${#left[@]} rest=() stopped=""
        for name in "${left[@]}"; do
            if grep -q "^test $name \.\.\. ok" "$log"; then record correctness "\"case\": $(quote "$name"), \"result\": \"ok\""
            elif grep -q "^test $name \.\.\. FAILED" "$log"; then again+=("$name")
            elif [ -z "$stopped" ]; then stopped=$name; again+=("$name")
            else rest+=("$name"); fi
        done
        left=("${rest[@]}")
        [ ${#left[@]} -lt "$before" ] || break
        limit=60
    done
    for name in "${again[@]}"; do
        if [ "$(room "$begun" "$1")" -lt 5 ]; then left+=("$name"); continue; fi
        log=$out/correctness.${name//:/_}.log
        SDRRL_SYNC_LAUNCHES=1 cases 40 "$log" "$name"
        case $? in
        0) record correctness "\"case\": $(quote "$name"), \"result\": \"ok alone\"" ;;
        124) bad=1; record correctness "\"case\": $(quote "$name"), \"result\": \"hung\"" ;;
        *) bad=1; record correctness "\"case\": $(quote "$name"), \"result\": \"failed\", \"says\": $(quote "$(reason "$log")")" ;;
        esac
    done
    for name in "${left[@]}"; do bad=1; record correctness "\"case\": $(quote "$name"), \"result\": \"not reached\""; done
    grep -o '"result": "[a-z ]*"' "$out/correctness.jsonl" | sort | uniq -c
    grep -v '"ok"' "$out/correctness.jsonl" | head -n 20
    return $bad
}

calibration() {
    [ -x scripts/calibrate.sh ] || { skip calibration "no scripts/calibrate.sh in this bundle"; return 0; }
    timeout "$1" scripts/calibrate.sh --device "$device" --out "$out" >"$out/calibration.log" 2>&1
    local status=$?
    [ -f "$out/calibration.json" ] && record calibration "\"result\": $(tr '\n' ' ' <"$out/calibration.json")"
    [ $status = 0 ] || record calibration "\"status\": $status, \"says\": $(quote "$(reason "$out/calibration.log")")"
    tail -n 30 "$out/calibration.log"
    return $status
}

quickstart() {
    local begun=$SECONDS status=0 limits=() code where
    [ -n "$small" ] && limits=(--set generate.limit=12 --set train.max-steps=2 --set 'eval.tasks=[]')
    # The device first: the other half is known.
    for where in "$device" cpu; do
        [ "$(room "$begun" "$1")" -gt 5 ] || { skip quickstart "$where: no time left"; break; }
        timeout -k 5 "$(room "$begun" "$1")" ./sdrrl run recipes/quickstart.toml --set "work=$out/quickstart-$where" --set "device=$where" --set dtype=bf16 \
            --set 'variants=["sdrrl"]' "${limits[@]}" >"$out/quickstart-$where.log" 2>&1
        code=$?
        [ $code = 0 ] || status=$code
        record quickstart "\"device\": $(quote "$where"), \"status\": $code, \"seconds\": $((SECONDS - begun)), \"losses\": [$(
            sed -n 's/.*"train\/loss": *\([0-9.e+-]*\).*/\1/p' "$out/quickstart-$where/train-sdrrl/metrics.jsonl" 2>/dev/null | paste -sd, -)], \"table\": $(
            quote "$(grep -E '^qa-' "$out/quickstart-$where.log" | tr -s ' ' | paste -sd';' -)"), \"says\": $(quote "$([ $code = 0 ] || reason "$out/quickstart-$where.log")")"
        echo "$where: $(grep -E '^qa-' "$out/quickstart-$where.log" || tail -n 2 "$out/quickstart-$where.log")"
    done
    rm -rf "$out"/quickstart-{cpu,"$device"}
    return $status
}

parity() {
    local shape=(--shape llama-1b) status
    [ -n "$small" ] && shape=(--shape tiny --steps 4 --length 40 --documents 2)
    has_python 'torch, transformers, peft' || { skip parity "no python3 with torch, transformers and peft"; return 0; }
    timeout "$1" "$python" scripts/peer_parity.py ./sdrrl --device "$device" "${shape[@]}" >"$out/parity.log" 2>&1
    status=$?
    record parity "\"status\": $status, \"result\": $(grep '^{' "$out/parity.log" || echo null), \"says\": $(quote "$([ $status = 0 ] || reason "$out/parity.log")")"
    grep -v '^{' "$out/parity.log" | tail -n 4
    return $status
}

ranks() {
    local begun=$SECONDS set shard code=0 nccl folder
    local args=(run recipes/quickstart.toml --set generate.limit=40 --set train.max-steps=8 --set 'eval.tasks=[]' --set 'variants=["sdrrl"]' --set 'train.reduce="fixed"')
    [ "$device" = cuda ] || { skip ranks "ranks take CUDA's devices"; return 0; }
    nccl=$([ -n "$python" ] && "$python" -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib")' 2>/dev/null)
    [ -z "$nccl" ] || export SDRRL_NCCL=${SDRRL_NCCL:-$nccl}
    # One rank, two, and two that keep parts: the same bytes.
    for set in cuda:0 cuda:0-1 cuda:0-1/optimizer cuda:0-1/weights; do
        folder=$out/ranks-${set/\//-} shard=none
        [ "$set" = "${set#*/}" ] || shard=${set#*/}
        timeout -k 5 "$(room "$begun" "$1")" ./sdrrl "${args[@]}" --set "work=$folder" --set "device=${set%/*}" --set "train.shard=\"$shard\"" >"$folder.log" 2>&1
        code=$?
        if [ $code = 69 ]; then
            skip ranks "$(reason "$folder.log")"
            code=0
            break
        fi
        record ranks "\"device\": \"$set\", \"status\": $code, \"seconds\": $((SECONDS - begun)), \"adapter\": \"$(sha256sum <"$folder/train-sdrrl/adapter_model.safetensors" 2>/dev/null | cut -c1-64)\", \"says\": $(
            quote "$([ $code = 0 ] || reason "$folder.log")")"
        [ $code = 0 ] || break
    done
    # Sums on NCCL's own stream, in bf16: other bits, so that only its end and its time are recorded.
    if [ $code = 0 ] && [ "$set" = cuda:0-1/weights ]; then
        set=cuda:0-1/bf16 folder=$out/ranks-sums
        timeout -k 5 "$(room "$begun" "$1")" ./sdrrl "${args[@]}" --set "work=$folder" --set device=cuda:0-1 --set 'train.reduce="all-reduce"' --set 'train.reduce-dtype="bf16"' --set 'train.shard="weights"' >"$folder.log" 2>&1
        code=$?
        record ranks "\"device\": \"$set\", \"status\": $code, \"seconds\": $((SECONDS - begun)), \"says\": $(quote "$([ $code = 0 ] || reason "$folder.log")")"
    fi
    rm -rf "$out"/ranks-{cuda:0,cuda:0-1,cuda:0-1-optimizer,cuda:0-1-weights,sums}
    cat "$out/ranks.jsonl"
    # All that are in one order have the bytes of one.
    [ $code = 0 ] && [ "$(sed -n 's/.*"adapter": "\([^"]*\)".*/\1/p' "$out/ranks.jsonl" | sort -u | wc -l)" -le 1 ]
}

kernels() {
    local begun=$SECONDS status=0 more=(--device "$device") peer=() rounds=3 round
    [ -n "$small" ] && more+=(--smoke) rounds=1
    # PyTorch without its GPU would take hours.
    { [ -n "$small" ] || has_python 'torch; assert torch.cuda.is_available()'; } && has_python torch && peer=("$python" scripts/peer_kernels.py run --compile --device "$([ -n "$small" ] && echo cpu || echo cuda)")
    rm -f "$out"/kernels.*.jsonl
    if [ ${#peer[@]} -gt 0 ] && [ -z "$small" ]; then
        ./bench-kernels --list >"$out/kernels.table"
        timeout 60 "$python" scripts/peer_kernels.py check --table "$out/kernels.table" --device cuda >"$out/kernels.check.log" 2>&1
        record kernels "\"check of PyTorch's side\": $?, \"says\": $(quote "$(tail -n 1 "$out/kernels.check.log")")"
    fi
    for ((round = 1; round <= rounds; round++)); do
        [ "$(room "$begun" "$1")" -gt 20 ] || break
        timeout "$(room "$begun" "$1")" ./bench-kernels "${more[@]}" --json "$out/kernels.ours.$round.jsonl" >"$out/kernels.$round.log" 2>&1 || status=$?
        [ ${#peer[@]} -gt 0 ] && [ "$(room "$begun" "$1")" -gt 20 ] &&
            timeout "$(room "$begun" "$1")" "${peer[@]}" --rows "$out/kernels.ours.$round.jsonl" --json "$out/kernels.torch.$round.jsonl" >"$out/kernels.torch.$round.log" 2>&1
    done
    cat "$out"/kernels.ours.*.jsonl | sed 's/^{/{"by": "sdrrl", /' >>"$out/kernels.jsonl"
    compgen -G "$out/kernels.torch.*.jsonl" >/dev/null && cat "$out"/kernels.torch.*.jsonl | sed 's/^{/{"by": "torch", /' >>"$out/kernels.jsonl"
    if [ ${#peer[@]} -gt 0 ]; then
        "$python" scripts/peer_kernels.py table --ours "$out"/kernels.ours.*.jsonl --theirs "$out"/kernels.torch.*.jsonl >"$out/kernels.md" 2>>"$out/kernels.1.log"
    fi
    head -n 70 "$out/kernels.md" 2>/dev/null || tail -n 70 "$out/kernels.1.log"
    return $status
}

# a_bench PART PROGRAM NAME ARGUMENT ...: a bench's table as a line of PART.jsonl.
a_bench() {
    local part=$1 program=$2 name=$3 seconds=$4 log=$out/$1.$3.log code
    shift 4
    [ "$seconds" -gt 20 ] || { skip "$part" "$name: no time left"; return 0; }
    timeout "$seconds" "$program" "$@" >"$log" 2>&1
    code=$?
    record "$part" "\"name\": $(quote "$name"), \"status\": $code, \"output\": [$(while IFS= read -r line; do quote "$line"; echo; done <"$log" | paste -sd, -)]"
    cat "$log"
    return $code
}
steps() {
    local begun=$SECONDS status=0 more=() rounds=3 shape name rows length shapes=("llama2-7b 8 2048" "llama2-7b 2 2048" "llama-1b 8 2048" "smollm2-135m 8 1024")
    [ -n "$small" ] && shapes=("tiny 1 16") rounds=1
    has_python 'torch, transformers, peft' && more=(--python "$python")
    for shape in "${shapes[@]}"; do
        read -r name rows length <<<"$shape"
        a_bench steps ./bench-steps "$name-$rows" "$(room "$begun" "$1")" --shape "$name" --rows "$rows" --length "$length" --dtypes bf16 --device "$device" \
            --rounds $rounds "${more[@]}" || status=$?
    done
    return $status
}
generation() {
    local begun=$SECONDS status=0 more=(--batches 1,8,64 --prompt 128 --new 128) shape shapes=(llama2-7b llama-1b)
    [ -n "$small" ] && shapes=(tiny) more=(--batches 1 --prompt 8 --new 4)
    has_python 'torch, transformers' && more+=(--python "$python")
    for shape in "${shapes[@]}"; do
        a_bench generation ./bench-generation "$shape" "$(room "$begun" "$1")" --shape "$shape" --device "$device" --rounds 1 "${more[@]}" || status=$?
    done
    return $status
}

sanitizers() {
    local found status=0 begun=$SECONDS tool code share=4
    found=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    [ -n "$found" ] && [ "$device" = cuda ] || { skip sanitizers "no compute-sanitizer here"; return 0; }
    # Each gets its share of the time that the ones before have left.
    for tool in racecheck memcheck synccheck initcheck; do
        [ "$(room "$begun" "$1")" -gt 20 ] || { skip sanitizers "$tool: no time left"; break; }
        SDRRL_TEST_DEVICE=cuda timeout -k 5 $(($(room "$begun" "$1") / share)) "$found" --tool $tool --error-exitcode 99 --print-limit 20 \
            tests/all kernels:: --test-threads 1 --skip quickstart >"$out/$tool.log" 2>&1
        code=$?
        [ $code = 0 ] || status=1
        share=$((share - 1))
        record sanitizers "\"tool\": \"$tool\", \"status\": $code, \"cases\": $(grep -c '^test .* ok$' "$out/$tool.log"), \"summary\": $(
            quote "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.log" | tail -n 1)"), \"seconds\": $((SECONDS - begun))"
        tail -n 1 "$out/sanitizers.jsonl"
    done
    return $status
}

# Each fault of scripts/mutate_kernels.sh, compiled into the bundle: does the chip show what the emulator reports?
mutants() {
    local begun=$SECONDS number name cases emulator log code result
    [ -f mutants/list.tsv ] || { skip mutants "no mutants in this bundle"; return 0; }
    [ "$device" = cuda ] || { skip mutants "the device is not cuda"; return 0; }
    while IFS=$'\t' read -r number name cases emulator; do
        [ "$(room "$begun" "$1")" -gt 15 ] || { skip mutants "from $name on: no time left"; break; }
        log=$out/mutant.$number.log
        # Unquoted: words of a filter.
        SDRRL_FATBINS=$PWD/mutants/$number SDRRL_TEST_DEVICE=cuda timeout 15 tests/all $cases --test-threads 1 >"$log" 2>&1
        code=$?
        case $code in
        0) result="not shown" ;;
        124) result="hangs" ;;
        *) result="shown" ;;
        esac
        record mutants "\"fault\": $(quote "$name"), \"chip\": \"$result\", \"says\": $(quote "$([ $code = 0 ] || reason "$log")"), \"emulator\": $(quote "$emulator")"
    done <mutants/list.tsv
    sed 's/.*"fault": "\([^"]*\)", "chip": "\([^"]*\)".*/\2: \1/' "$out/mutants.jsonl" | sort
}

ncu() {
    local found begun=$SECONDS rows=() row n=0 code status=0
    found=$(type -P ncu || ls /usr/local/cuda/bin/ncu 2>/dev/null)
    [ -n "$found" ] && [ "$device" = cuda ] || { skip ncu "no ncu here"; return 0; }
    # Rows that are known to matter, where the table was not measured.
    rows=("linear_forward 8192x11008x4096 bf16" "lora_forward 8192x11008x4096x16 bf16" "attention_forward 4x2048x32x32x128 bf16" "attention_backward 4x2048x32x32x128 bf16" "swiglu_backward 8192x11008 bf16")
    compgen -G "$out/kernels.ours.*.jsonl" >/dev/null && [ -n "$python" ] &&
        mapfile -t rows < <("$python" scripts/peer_kernels.py worst --count 5 --ours "$out"/kernels.ours.*.jsonl --theirs $(compgen -G "$out/kernels.torch.*.jsonl"))
    for row in "${rows[@]}"; do
        [ "$(room "$begun" "$1")" -gt 20 ] || { skip ncu "$row: no time left"; continue; }
        n=$((n + 1))
        # The clocks stay as they are. Sections, whose names last longer than those of single counters.
        timeout "$(room "$begun" "$1")" "$found" --clock-control none --profile-from-start off --csv --page details \
            --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats --section WarpStateStats --section SchedulerStats \
            ./bench-kernels --device cuda --once "$row" >"$out/ncu.$n.csv" 2>"$out/ncu.$n.log"
        code=$?
        [ $code = 0 ] || status=1
        if grep -qs 'ERR_NVGPUCTRPERM\|LibraryNotLoaded' "$out/ncu.$n.csv" "$out/ncu.$n.log"; then
            skip ncu "ncu cannot read this machine's counters: $(reason "$out/ncu.$n.csv")"
            return 1
        fi
        record ncu "\"row\": $(quote "$row"), \"status\": $code, \"csv\": \"ncu.$n.csv\", \"lines\": $(grep -c '^"' "$out/ncu.$n.csv")"
    done
    # The emulator's counts of its test patterns, and the chip's.
    local log=$out/profile.log metrics=l1tex__data_pipe_lsu_wavefronts_mem_shared.sum,l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum,l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum
    [ "$(room "$begun" "$1")" -gt 10 ] && SDRRL_TEST_DEVICE=cuda timeout "$(room "$begun" "$1")" "$found" --clock-control none -k patterns --csv --page raw \
        --metrics $metrics tests/emulator features::profile --nocapture --test-threads 1 >"$log" 2>&1
    code=$?
    [ $code = 0 ] || status=1
    record ncu "\"profile\": \"profile.log\", \"status\": $code"
    cat "$out/ncu.jsonl"
    return $status
}

# Of the time that is left a part may take its share among those still to come, so that all of them fit; what it does not need goes to the next.
declare -A share=([correctness]=180 [calibration]=100 [quickstart]=90 [parity]=120 [ranks]=40 [kernels]=330 [steps]=240 [generation]=80 [sanitizers]=200 [mutants]=110 [ncu]=70)
to_come=0 failed=0
for part in "${parts[@]}"; do to_come=$((to_come + share[$part])); done
[ -f "$out/machine.json" ] || machine >"$out/machine.json"
cat "$out/machine.json"
for part in "${parts[@]}"; do
    room=$(((ends - $(date +%s)) * share[$part] / to_come))
    to_come=$((to_come - share[$part]))
    if [ "$room" -lt 20 ]; then
        record summary "\"part\": \"$part\", \"skipped\": \"no time left\""
        continue
    fi
    if [ -z "${SDRRL_GEMM:-}" ] && grep -qsE '"case": "[^"]*hopper[^"]*", "result": "(failed|hung)"' "$out/correctness.jsonl"; then
        export SDRRL_GEMM=mma128
        record summary '"part": "note", "skipped": "Hopper products failed: the parts below ran with SDRRL_GEMM=mma128"'
    fi
    echo "== $part (at most $room s)${SDRRL_GEMM:+, SDRRL_GEMM=$SDRRL_GEMM}"
    rm -f "$out/$part.jsonl"
    begun=$SECONDS
    $part "$room"
    status=$?
    [ $status = 0 ] || failed=1
    record summary "\"part\": \"$part\", \"status\": $status, \"seconds\": $((SECONDS - begun))"
    [ -z "$archive" ] || { tar -czf "$archive.partial" -C "$out" . && mv "$archive.partial" "$archive"; }
done
[ -n "$python" ] && "$python" scripts/gpu_report.py "$out"
[ -z "$archive" ] || { tar -czf "$archive.partial" -C "$out" . && mv "$archive.partial" "$archive"; }
echo "== done: $out"
exit $failed
