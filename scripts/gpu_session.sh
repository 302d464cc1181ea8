#!/usr/bin/env bash
# Everything that a GPU can tell about this program, in the order of its worth, within a time: correctness of every kernel and of whole steps, the
# quickstart's training, parity with PyTorch, the sanitizers, the benchmarks beside their peers. In a bundle of scripts/gpu_bundle.sh this file is run.sh.
#   run.sh [--out DIR] [--minutes N] [--device cuda|emulated] [PART ...]
# Parts: correctness quickstart parity sanitizers kernels steps (default: all, in this order). DIR gets one JSON a part (default: results) and the logs beside
# it; a part that does not fit the time that is left is named in summary.json and skipped, and a run cut off leaves valid JSON.
# --device emulated runs the same commands without a GPU, to try this script; its figures mean nothing.
set -uo pipefail
cd "$(dirname "$0")"
out=results minutes=25 device=cuda parts=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    correctness | quickstart | parity | sanitizers | kernels | steps) parts+=("$1"); shift ;;
    *) sed -n '2,8p' "$0" >&2; exit 2 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(correctness quickstart parity sanitizers kernels steps)
mkdir -p "$out"
out=$(cd "$out" && pwd)
ends=$(($(date +%s) + minutes * 60))
left() { echo $((ends - $(date +%s))); }
failed=0

# A string as JSON.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
# write NAME: stdin to NAME.json, whole or not at all.
write() { cat >"$out/$1.json.partial" && mv "$out/$1.json.partial" "$out/$1.json"; }
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
machine() {
    printf '{"date": %s, "commit": %s, "device": %s, "gpu": %s, "driver": %s, "power_limit": %s, "clocks_sm": %s, "clocks_memory": %s' \
        "$(quote "$(date -u +%Y-%m-%dT%H:%M:%SZ)")" "$(quote "$(cat commit 2>/dev/null)")" "$(quote "$device")" "$(quote "$(gpu name)")" \
        "$(quote "$(gpu driver_version)")" "$(quote "$(gpu power.limit)")" "$(quote "$(gpu clocks.sm)")" "$(quote "$(gpu clocks.mem)")"
}
# tests_json LOG STATUS SECONDS: what libtest said, as JSON.
tests_json() {
    machine
    printf ', "status": %d, "seconds": %d, "passed": [' "$2" "$3"
    awk '/^test .* \.\.\. ok$/ { printf "%s\"%s\"", n++ ? ", " : "", $2 }' "$1"
    printf '], "failed": ['
    awk '/^test .* \.\.\. FAILED$/ { printf "%s\"%s\"", n++ ? ", " : "", $2 }' "$1"
    printf ']}\n'
}

correctness() {
    local begun=$SECONDS
    # One thread: a fault of one kernel must not be blamed on another test.
    SDRRL_TEST_DEVICE=$device SDRRL_BIN=$PWD/sdrrl timeout "$1" tests/all kernels:: --test-threads 1 >"$out/correctness.log" 2>&1
    local status=$?
    tests_json "$out/correctness.log" $status $((SECONDS - begun)) | write correctness
    grep -E '^test result|panicked' "$out/correctness.log"
    return $status
}

# The quickstart with everything on the device against the same on the processor, by its final table.
quickstart() {
    local begun=$SECONDS status=0 limits=()
    [ "$device" = emulated ] && limits=(--set train.max-steps=2 --set 'eval.tasks=[]')
    for where in cpu "$device"; do
        timeout "$1" ./sdrrl run recipes/quickstart.toml --set "work=$out/quickstart-$where" --set "device=$where" --set dtype=bf16 \
            --set 'variants=["sdrrl"]' "${limits[@]}" >"$out/quickstart-$where.log" 2>&1 || status=$?
    done
    {
        machine
        printf ', "status": %d, "seconds": %d' $status $((SECONDS - begun))
        for where in cpu "$device"; do
            printf ', "%s": [' "$where"
            grep '"train/loss"' "$out/quickstart-$where/train-sdrrl/metrics.jsonl" 2>/dev/null | paste -sd, -
            printf '], "%s_table": %s' "$where" "$(quote "$(grep -E '^qa-' "$out/quickstart-$where.log" | tr -s ' ' | paste -sd';' -)")"
        done
        printf '}\n'
    } | write quickstart
    for where in cpu "$device"; do echo "$where:"; grep -E '^qa-|error' "$out/quickstart-$where.log"; done
    return $status
}

# 20 LoRA steps of a model of 1.1 billion parameters against transformers and peft.
parity() {
    local shape=(--shape llama-1b) status
    [ "$device" = emulated ] && shape=(--shape tiny --steps 4 --length 40 --documents 2)
    if ! python3 -c 'import torch, transformers, peft' 2>/dev/null; then
        { machine; printf ', "skipped": "no python3 with torch, transformers and peft"}\n'; } | write parity
        echo "no python3 with torch, transformers and peft"
        return 0
    fi
    timeout "$1" python3 scripts/peer_parity.py ./sdrrl --device "$device" "${shape[@]}" >"$out/parity.log" 2>&1
    status=$?
    { machine; printf ', "status": %d, "result": %s}\n' $status "$(grep '^{' "$out/parity.log" || echo null)"; } | write parity
    grep -v '^{' "$out/parity.log" | tail -n 4
    return $status
}

sanitizers() {
    local found status=0 begun=$SECONDS first=1
    found=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    if [ -z "$found" ] || [ "$device" != cuda ]; then
        { machine; printf ', "skipped": "no compute-sanitizer here"}\n'; } | write sanitizers
        echo "no compute-sanitizer here"
        return 0
    fi
    {
        machine
        printf ', "tools": {'
        for tool in memcheck racecheck synccheck initcheck; do
            [ $((begun + $1 - SECONDS)) -gt 20 ] || break
            SDRRL_TEST_DEVICE=cuda SDRRL_BIN=$PWD/sdrrl timeout $((begun + $1 - SECONDS)) "$found" --tool $tool --error-exitcode 99 --print-limit 20 \
                tests/all kernels:: --test-threads 1 --skip steps >"$out/$tool.log" 2>&1
            local code=$?
            printf '%s"%s": {"status": %d, "summary": %s}' "$([ $first = 1 ] || printf ', ')" $tool $code \
                "$(quote "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.log" | tail -n 1)")"
            first=0
        done
        printf '}}\n'
    } | write sanitizers
    grep -hE 'SUMMARY' "$out"/{memcheck,racecheck,synccheck,initcheck}.log 2>/dev/null
    grep -q '"status": [^0]' "$out/sanitizers.json" && status=1
    return $status
}

# Every kernel's row and PyTorch's beside it, in turn, three rounds; the programs write their rows one by one.
kernels() {
    local begun=$SECONDS status=0 peer="" more=(--device "$device")
    [ "$device" = emulated ] && more=(--smoke)
    [ "$device" = cuda ] && python3 -c 'import torch' 2>/dev/null && peer=yes
    rm -f "$out"/kernels.*.jsonl
    for round in 1 2 3; do
        [ $((begun + $1 - SECONDS)) -gt 20 ] || break
        timeout $((begun + $1 - SECONDS)) ./bench-kernels "${more[@]}" --json "$out/kernels.ours.$round.jsonl" >"$out/kernels.$round.log" 2>&1 || status=$?
        [ -n "$peer" ] && [ $((begun + $1 - SECONDS)) -gt 20 ] &&
            timeout $((begun + $1 - SECONDS)) python3 scripts/peer_kernels.py run --compile --rows "$out/kernels.ours.$round.jsonl" \
                --json "$out/kernels.torch.$round.jsonl" >>"$out/kernels.$round.log" 2>&1
        [ "$device" = emulated ] && break
    done
    [ -n "$peer" ] && python3 scripts/peer_kernels.py table --ours "$out"/kernels.ours.*.jsonl --theirs "$out"/kernels.torch.*.jsonl >"$out/kernels.md"
    {
        machine
        printf ', "status": %d, "ours": [' $status
        cat "$out"/kernels.ours.*.jsonl 2>/dev/null | paste -sd, -
        printf '], "torch": ['
        cat "$out"/kernels.torch.*.jsonl 2>/dev/null | paste -sd, -
        printf ']}\n'
    } | write kernels
    head -n 60 "$out/kernels.md" 2>/dev/null || tail -n 60 "$out/kernels.1.log"
    return $status
}

# LoRA steps, packed, of growing models; a row of text a shape.
steps() {
    local more=() shapes=("smollm2-135m 8 1024" "llama-1b 8 2048" "llama2-7b 8 2048") status=0 begun=$SECONDS first=1
    [ "$device" = emulated ] && shapes=("tiny 1 16")
    python3 -c 'import torch, transformers, peft' 2>/dev/null && more=(--python python3)
    {
        machine
        printf ', "tables": ['
        for shape in "${shapes[@]}"; do
            read -r name rows length <<<"$shape"
            timeout $((begun + $1 - SECONDS)) ./bench-steps --shape "$name" --rows "$rows" --length "$length" --dtypes bf16 --device "$device" \
                --rounds 3 "${more[@]}" >"$out/steps.$name.log" 2>&1 || status=$?
            printf '%s%s' "$([ $first = 1 ] || printf ', ')" "$(quote "$(paste -sd';' "$out/steps.$name.log")")"
            first=0
        done
        printf '], "status": %d}\n' $status
    } | write steps
    tail -n 4 "$out"/steps.*.log
    return "$(sed 's/.*"status": \([0-9]*\)}$/\1/' "$out/steps.json")"
}

# Seconds that a part may take at most.
declare -A most=([correctness]=300 [quickstart]=240 [parity]=240 [sanitizers]=480 [kernels]=420 [steps]=300)
ran=()
for part in "${parts[@]}"; do
    room=$(left)
    [ "$room" -gt "${most[$part]}" ] && room=${most[$part]}
    if [ "$room" -lt 20 ]; then
        ran+=("{\"part\": \"$part\", \"skipped\": \"no time left\"}")
        continue
    fi
    echo "== $part (at most $room s)"
    begun=$SECONDS
    $part "$room"
    status=$?
    [ $status = 0 ] || failed=1
    ran+=("{\"part\": \"$part\", \"status\": $status, \"seconds\": $((SECONDS - begun))}")
    { machine; printf ', "parts": [%s]}\n' "$(IFS=,; echo "${ran[*]}")"; } | write summary
done
{ machine; printf ', "parts": [%s]}\n' "$(IFS=,; echo "${ran[*]}")"; } | write summary
echo "== done: $out/summary.json"
exit $failed
