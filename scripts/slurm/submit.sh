#!/usr/bin/env bash
# Runs a recipe over a Slurm cluster: a job for each of its stages behind those that it reads (afterok), then one for the table and the report. Row stages are job
# arrays of parts, trainings have a task for each GPU. Prints `STAGE JOB` for each.
#   scripts/slurm/submit.sh RECIPE [--parts N] [--ranks N] [--set KEY=VALUE]... [--all OPTIONS] [--rows OPTIONS] [--train OPTIONS]
#     --parts N        tasks of a row stage (default 1); more than there are shards (rows / rows-per-shard) have nothing to do
#     --ranks N        tasks of a training, one for each GPU (default 1, on a GPU or on the CPU); more than 1 set train.reduce = "fixed"
#     --set KEY=VALUE  as for `sdrrl run`, for all jobs
#     --all, --rows, --train OPTIONS   sbatch options for all jobs, row stages, trainings: --train '--partition=gpu --gpus-per-task=1 --time=8:00:00'
# To be called in the folder that the recipe's paths are relative to, on a file system that all nodes share, with sdrrl in PATH (or named by SDRRL). A job that is
# preempted, or is about to reach its time limit, writes its state and is queued again (stage.sh); Slurm queues those again whose node has failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
sdrrl=${SDRRL:-sdrrl}
usage() { sed -n '4,8s/^# *//p' "$0" >&2; exit 2; }

recipe='' parts=1 ranks=1 sets=() all=() rows=() train=()
while [ $# -gt 0 ]; do
  case $1 in
    --parts | --ranks | --set | --all | --rows | --train) [ $# -gt 1 ] || usage ;;
  esac
  case $1 in
    --parts) parts=$2; shift ;;
    --ranks) ranks=$2; shift ;;
    --set) sets+=(--set "$2"); shift ;;
    --all) read -ra all <<< "$2"; shift ;;
    --rows) read -ra rows <<< "$2"; shift ;;
    --train) read -ra train <<< "$2"; shift ;;
    -*) usage ;;
    *) [ -z "$recipe" ] || usage; recipe=$1 ;;
  esac
  shift
done
[[ $recipe && $parts =~ ^[1-9][0-9]*$ && $ranks =~ ^[1-9][0-9]*$ ]] || usage
[ "$ranks" = 1 ] || sets+=(--set 'train.reduce="fixed"')
run=("$sdrrl" run "$recipe" "${sets[@]}")

# submit NAME AFTER SBATCH-OPTIONS... -- STAGE.SH'S ARGUMENTS...
submit() {
  local name=$1 after=$2 options=() id
  shift 2
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  [ -z "$after" ] || options+=(--dependency="afterok$after" --kill-on-invalid-dep=yes)
  # TERM goes to the job's tasks, not to its script.
  id=$(sbatch --parsable --job-name="sdrrl-$name" --output=slurm-%x-%j.out --open-mode=append --requeue --signal=TERM@120 \
    "${all[@]}" "${options[@]}" "$here/stage.sh" "$@")
  job[$name]=${id%%;*}
  echo "$name ${job[$name]}"
}

declare -A job
stages=$("${run[@]}" --stages)
while read -r stage kind reads; do
  after=
  for input in $reads; do after+=:${job[$input]}; done
  # A network file system may show a finished folder to another node only after a minute.
  alone=("${run[@]}" --stage "$stage" --wait 120)
  case $kind in
    parts) submit "$stage" "$after" --array="1-$parts" "${rows[@]}" -- "$parts" "${alone[@]}" ;;
    ranks) submit "$stage" "$after" --ntasks="$ranks" "${train[@]}" -- 0 "${alone[@]}" ;;
    *) submit "$stage" "$after" -- 0 "${alone[@]}" ;;
  esac
done <<< "$stages"
submit report "$(printf ':%s' "${job[@]}")" -- 0 "${run[@]}"
