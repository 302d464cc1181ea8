#!/usr/bin/env bash
# Where chip and emulator agree: the emulator's own test kernels, what the driver refuses, the arithmetic that only a chip can tell, and each planted fault.
#   scripts/calibrate.sh [--device cuda|emulated] [--out DIR]
# DIR (default: calibration) gets calibration.json and calibration.md, whole after every step, and a log a step. In a bundle of scripts/gpu_bundle.sh the
# program is tests/emulator; in a checkout cargo builds it. --device emulated runs the same without a GPU, to try this script.
set -uo pipefail
device=cuda out=calibration
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) sed -n '2,5p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
done
case $device in cuda | emulated) ;; *) echo "calibrate.sh: --device cuda or emulated" >&2; exit 2 ;; esac
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
here=$(cd "$(dirname "$0")" && pwd)
root=$here
[ -x "$here/tests/emulator" ] || root=$(cd "$here/.." && pwd)
cd "$root" || exit 2
program=$root/tests/emulator
if [ ! -x "$program" ]; then
    built=$(cargo test --release --no-run -p sdrrl-emulator-tests --message-format json) || exit 1
    program=$(sed -n 's/.*"target":{"kind":\["test"\][^}]*"name":"emulator".*"executable":"\([^"]*\)".*/\1/p' <<<"$built" | tail -n 1)
    [ -n "$program" ] || { echo "calibrate.sh: cargo built no test named emulator" >&2; exit 1; }
fi

# A string as JSON; the lines of stdin that are not empty as a JSON array.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
lines() {
    local n=0 line
    printf '['
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        [ $((n++)) -gt 0 ] && printf ', '
        quote "$line"
    done
    printf ']'
}
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
commit=$(cat commit 2>/dev/null || git describe --always --dirty 2>/dev/null || echo unknown)
name=$(gpu name) driver=$(gpu driver_version) date=$(date -u +%Y-%m-%dT%H:%M:%SZ)

steps="" md_steps="" failures="" measured="" emulated="" faults="" table="" finished=false failed=0
publish() {
    {
        printf '{"date": %s, "commit": %s, "device": %s, "gpu": %s, "driver": %s, "finished": %s,\n "steps": [%s],\n "measured": %s,\n' \
            "$(quote "$date")" "$(quote "$commit")" "$(quote "$device")" "$(quote "$name")" "$(quote "$driver")" $finished "$steps" "$(lines <<<"$measured")"
        printf ' "measured_on_the_emulator": %s,\n "faults": [%s]}\n' "$(lines <<<"$emulated")" "$faults"
    } >"$out/calibration.json.partial" && mv "$out/calibration.json.partial" "$out/calibration.json"
    {
        printf '# Calibration: %s\n\n%s, commit %s, driver %s, %s.\n\n' "${name:-$device}" "$date" "$commit" "${driver:-none}" \
            "$([ $finished = true ] && echo all steps || echo not finished)"
        printf '| step | passed | passed alone | failed | s |\n|---|---|---|---|---|\n%b\n' "$md_steps"
        [ -n "$failures" ] && printf '## Failures\n\n```\n%s\n```\n\n' "$failures"
        [ -n "$measured" ] && printf '## Measured: %s\n\n```\n%s\n```\n\n' "$device" "$measured"
        [ -n "$emulated" ] && printf '## The same on the emulator\n\n```\n%s\n```\n\n' "$emulated"
        [ -n "$table" ] && printf '## Planted faults\n\n| fault | emulator | %s |\n|---|---|---|\n%s\n' "$device" "$table"
    } >"$out/calibration.md.partial" && mv "$out/calibration.md.partial" "$out/calibration.md"
}

# run SECONDS DEVICE ARGUMENTS: one thread, as one context serves all tests of a process.
run() { SDRRL_TEST_DEVICE=$2 timeout -k 5 "$1" "$program" --test-threads 1 --show-output "${@:3}"; }
# step MODULE [DEVICE]: its tests. A kernel's fault ends the context of its process: what failed runs again alone, and only what fails again counts.
step() {
    local where=${2:-$device} label=$1 begun=$SECONDS status passed bad="" shared="" log one why
    [ "$where" = "$device" ] || label=$1-$where
    log=$out/calibration-$label.log
    run 30 "$where" "$1::" >"$log" 2>"${log%.log}.err"
    status=$?
    passed=$(sed -n 's/^test \(.*\) \.\.\. ok$/\1/p' "$log")
    if [ $status -ne 0 ]; then
        # Also those that a crash or the time limit kept from running.
        for one in $(run 10 "$where" "$1::" --list 2>/dev/null | sed -n 's/: test$//p'); do
            grep -qx "$one" <<<"$passed" && continue
            run 10 "$where" --exact "$one" >"$log.alone" 2>>"${log%.log}.err"
            why="status $?"
            if [ "$why" = "status 0" ]; then
                shared+=${shared:+$'\n'}$one
            else
                [ "$why" != "status 124" ] || why="hang, ended after 10 s"
                bad+=${bad:+$'\n'}$one
                failures+="$one${2:+ on the $2 device}: $why"$'\n'
                failures+=$(sed -n '/panicked at/,/^stack backtrace\|^note:/p' "$log.alone" | grep -v 'panicked at\|^stack backtrace\|^note:\|^$' | head -n 40)$'\n'
            fi
            cat "$log.alone" >>"$log"
            rm -f "$log.alone"
        done
        [ -n "$bad" ] || [ -n "$shared" ] || { bad="(status $status)"; failures+="$label: status $status, $(tail -n 3 "$log" "${log%.log}.err" | head -c 500)"$'\n'; }
    fi
    [ -s "${log%.log}.err" ] || rm -f "${log%.log}.err"
    [ -z "$bad" ] || failed=1
    steps+="${steps:+, }{\"step\": $(quote "$label"), \"status\": $status, \"seconds\": $((SECONDS - begun)), \"passed\": $(lines <<<"$passed"), "
    steps+="\"passed_alone\": $(lines <<<"$shared"), \"failed\": $(lines <<<"$bad"), "
    steps+="\"skipped\": $(sed -n 's/^skipped on a GPU: //p' "$log" | sort -u | lines)}"
    md_steps+="| $label | $(grep -c . <<<"$passed") | $(paste -sd' ' <<<"$shared") | $(paste -sd' ' <<<"$bad") | $((SECONDS - begun)) |\n"
    local figures=$(sed -n 's/^calibration: //p' "$log" | awk '!seen[$0]++')
    if [ "$where" = "$device" ]; then measured+=${measured:+$'\n'}$figures; else emulated+=${emulated:+$'\n'}$figures; fi
    publish
    echo "$label: $(grep -c . <<<"$passed") passed, $(grep -c . <<<"$bad") failed, $((SECONDS - begun)) s"
}

# fault DEVICE NUMBER: what becomes of one planted fault, into a file; a process each, as it may hang or end the context.
fault() {
    local status text
    text=$(SDRRL_TEST_DEVICE=$1 SDRRL_FAULT=$2 timeout -k 2 8 "$program" faults_on_chip:: --ignored --nocapture 2>/dev/null)
    status=$?
    text=$(sed -n 's/^fault [A-Z_]*: //p' <<<"$text" | head -n 1)
    if [ -z "$text" ]; then
        case $status in 124 | 137) text="hang, ended after 8 s" ;; *) text="died with status $status" ;; esac
    fi
    printf '%s\n' "$text" >"$out/calibration-fault-$1-$2"
}
# What is known of each fault so far.
fault_table() {
    local n=0 one emulator chip
    faults="" table=""
    for one in $names; do
        emulator=$(cat "$out/calibration-fault-emulated-$n" 2>/dev/null || echo "not run") chip=$(cat "$out/calibration-fault-$device-$n" 2>/dev/null || echo "not run")
        [ "$one" != NONE ] || [ "$chip" = "right result" ] || [ "$chip" = "not run" ] || failed=1
        faults+="${faults:+,}"$'\n'"  {\"fault\": $(quote "$one"), \"emulator\": $(quote "$emulator"), \"chip\": $([ "$device" = emulated ] && echo null || quote "$chip")}"
        table+="| $one | ${emulator//|/\\|} | $([ "$device" = emulated ] && echo "not run" || echo "${chip//|/\\|}") |"$'\n'
        n=$((n + 1))
    done
    publish
}
# The table of planted faults: emulator beside chip.
planted_faults() {
    local n=0 one where at_once=4 begun=$SECONDS
    # A GPU may be set to serve one process at a time.
    [[ $(gpu compute_mode) == Exclusive* ]] && at_once=1
    names=$(SDRRL_TEST_DEVICE=emulated SDRRL_FAULT=list "$program" faults_on_chip:: --ignored --nocapture | sed -n 's/^faults: //p')
    [ -n "$names" ] || { failed=1; echo "calibrate.sh: the program lists no faults" >&2; return; }
    for one in $names; do
        for where in emulated $([ "$device" = emulated ] || echo "$device"); do
            fault "$where" $n &
            while [ "$(jobs -rp | wc -l)" -ge $at_once ]; do wait -n; done
        done
        n=$((n + 1))
    done
    wait
    fault_table
    rm -f "$out"/calibration-fault-*
    echo "planted faults: $n, $((SECONDS - begun)) s"
}

names=""
# What still runs must not outlive this script, and what is known is kept.
trap 'kill $(jobs -p) 2>/dev/null; fault_table; exit 1' TERM INT
publish
for one in features wgmma faults rules arithmetic; do step $one; done
if [ "$device" != emulated ]; then step rules emulated; step arithmetic emulated; fi
planted_faults
finished=true
publish
echo "$out/calibration.json, $out/calibration.md"
exit $failed
