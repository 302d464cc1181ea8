#!/usr/bin/env bash
# Rehearses scripts/slurm on a real Slurm: slurmctld and three slurmd on this machine, with a munge of their own, in a temporary folder. The quickstart as jobs must end with
# the bytes of one process: undisturbed; with its jobs requeued and preempted; and a training by two ranks (emulated GPUs) on two nodes, preempted too.
#   scripts/rehearsal_slurm.sh [FOLDER]            default: a temporary one, which goes at the end; takes about ten minutes on two cores
# Needs Debian's packages slurm-wlm and munge (not configured, not running), root or a user who may run slurmd, and target/release/sdrrl (or SDRRL).
set -euo pipefail
cd "$(dirname "$0")/.."
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" > /dev/null || { echo "rehearsal_slurm.sh: no $program: apt-get install slurm-wlm munge" >&2; exit 1; }
done
SDRRL=$(realpath "${SDRRL:-target/release/sdrrl}")
export SDRRL RAYON_NUM_THREADS=1
dir=${1:-$(mktemp -d)}
mkdir -p "$dir/state"
dir=$(realpath "$dir")
export SLURM_CONF=$dir/slurm.conf
keep=${1:-}

# The cluster. Its nodes are addresses of this machine, so that the first host of a node list is one that can be reached.
down() {
  # Of a rehearsal that failed.
  scancel --user="$(id -un)" 2> /dev/null && for _ in {1..20}; do squeue -h | grep -q . || break; sleep 1; done
  for pid in "$dir"/*.pid; do [ ! -f "$pid" ] || kill "$(cat "$pid")" 2> /dev/null || true; done
  sleep 2
  [ -n "$keep" ] || rm -rf "$dir"
}
up() {
  local port=$((20000 + RANDOM % 9000)) user
  user=$(id -un)
  head -c 1024 /dev/urandom > "$dir/munge.key"
  chmod 600 "$dir/munge.key"
  trap down EXIT
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munge.pid" --log-file="$dir/munge.log" --seed-file="$dir/munge.seed"
  cat > "$SLURM_CONF" << END
ClusterName=rehearsal
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName=127.0.0.1 NodeHostname=$(hostname) Port=$((port + 1)) CPUs=2
NodeName=127.0.0.2 NodeHostname=$(hostname) Port=$((port + 2)) CPUs=2
NodeName=127.0.0.3 NodeHostname=$(hostname) Port=$((port + 3)) CPUs=2
PartitionName=work Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=off
END
  slurmctld
  for node in 127.0.0.1 127.0.0.2 127.0.0.3; do slurmd -N "$node"; done
}

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() { say "FAILED: $* (everything is in $dir)"; keep=1; exit 1; }
about() { scontrol show job -o "$1" | grep -oE "(^| )$2=[^ ]*" | head -1 | cut -d= -f2; }
# Submits a recipe's jobs; their numbers are in job[STAGE].
declare -A job
submit() {
  local name id lines
  lines=$(scripts/slurm/submit.sh "$@" --all "--chdir=$PWD --output=$dir/%x-%j.out")
  while read -r name id; do job[$name]=$id; done <<< "$lines"
  say "submitted: $(tr '\n' ',' <<< "$lines")"
}
until_done() {
  local state
  while state=$(about "$1" JobState); [ "$state" != COMPLETED ]; do
    case $state in FAILED | CANCELLED | TIMEOUT | NODE_FAIL | DEADLINE) squeue; fail "job $1: $state: $(tail -n 5 "$dir"/*-"$1".out)" ;; esac
    sleep 1
  done
}
# until_steps FOLDER N
until_steps() { while local steps; steps=$(grep -cs train/loss "$1/metrics.jsonl"); [ "${steps:-0}" -lt "$2" ]; do sleep 0.2; done; }
same() {
  diff -rq --exclude=timing.jsonl --exclude=report.html --exclude=training.html --exclude='events*' "$1" "$2" || fail "$1 and $2 differ"
  say "the same bytes: $(find "$2" -type f | wc -l) files in ${2##*/}"
}
preempt() {
  sbatch --partition=urgent --nodes=3 --exclusive --output=/dev/null --wrap 'sleep 2' > /dev/null
  until_restarted "$1" "$2"
}
until_restarted() { until [ "$(about "$1" Restarts)" = "$2" ]; do sleep 0.5; done; say "job $1 was stopped, and is queued again"; }

up
# The quickstart with all of its stages and two of its variants, in 100 steps each.
quickstart=(recipes/quickstart.toml --set rows-per-shard=8 --set train.max-steps=100 --set train.eval-every=20)
two=(--set 'variants=["sdrrl", "sft"]')
one=(--set 'variants=["sdrrl"]')
sinfo
say "quickstart, one process"
whole() { "$SDRRL" run "$@" > "$dir/whole.log" 2>&1 || fail "$(tail -n 5 "$dir/whole.log")"; }
whole "${quickstart[@]}" "${two[@]}" --set work="$dir/one"
# Its stages are those of the other, but for the table.
cp -r "$dir/one" "$dir/one-variant"
rm -r "$dir"/one-variant/*-sft
whole "${quickstart[@]}" "${one[@]}" --set work="$dir/one-variant"

say "quickstart, jobs"
submit "${quickstart[@]}" "${two[@]}" --set work="$dir/jobs" --parts 4
until_done "${job[report]}"
same "$dir/one" "$dir/jobs"

say "quickstart, disturbed jobs"
submit "${quickstart[@]}" "${one[@]}" --set work="$dir/disturbed" --parts 2
until compgen -G "$dir/disturbed/generate/*.partial" > /dev/null; do sleep 0.1; done
scontrol requeue "${job[generate]}_1"
until_restarted "${job[generate]}_1" 1
until_steps "$dir/disturbed/train-sdrrl" 3
preempt "${job[train-sdrrl]}" 1
until_steps "$dir/disturbed/train-sdrrl" 20
scontrol requeue "${job[train-sdrrl]}"
until_restarted "${job[train-sdrrl]}" 2
until_done "${job[report]}"
same "$dir/one-variant" "$dir/disturbed"

say "a cancelled job is not queued again"
submit "${quickstart[@]}" "${one[@]}" --set work="$dir/cancelled" --parts 2
until_steps "$dir/cancelled/train-sdrrl" 3
scancel "${job[train-sdrrl]}"
# Neither are those behind it.
while squeue -h | grep -q .; do sleep 1; done
state=$(for stage in train-sdrrl eval-sdrrl report; do about "${job[$stage]}" JobState; about "${job[$stage]}" Restarts; done | tr '\n' ' ')
[ "$state" = "CANCELLED 0 CANCELLED 0 CANCELLED 0 " ] || fail "$state"
compgen -G "$dir/cancelled/train-sdrrl/checkpoint*" > /dev/null || fail "no checkpoint"
say "cancelled, with a checkpoint"

say "two ranks on two nodes"
scripts/rehearsal_nccl.sh
SDRRL_NCCL=$PWD/target/rehearsal
export SDRRL_NCCL
for i in 1 2 3 4 5 6; do echo "{\"id\": \"$i\", \"question\": \"Where is lamp $i?\", \"answer\": \"Lamp $i is in house $i.\"}"; done > "$dir/rows.jsonl"
cat > "$dir/ranks.toml" << END
name = "ranks"
work = "set below"
model = "assets/quickstart/model"
device = "emulated"
examples = "$dir/rows.jsonl"
[pack]
max-length = 64
[train]
lora-rank = 2
lora-targets = ["q_proj"]
batch-documents = 4
batch-tokens = 64
epochs = 10
END
whole "$dir/ranks.toml" --set 'train.reduce="fixed"' --set work="$dir/rank"
submit "$dir/ranks.toml" --set work="$dir/ranks" --ranks 2 --train --nodes=2
until_steps "$dir/ranks/train" 2
say "ranks on $(about "${job[train]}" NodeList)"
preempt "${job[train]}" 1
until_done "${job[report]}"
same "$dir/rank" "$dir/ranks"
say "all as it should be"
