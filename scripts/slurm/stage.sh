#!/usr/bin/env bash
# A job of submit.sh: runs a command as the job's step, of an array of PARTS tasks with its --part. A command that a signal has stopped has written its state, and is queued again.
#   stage.sh PARTS COMMAND...       PARTS: 0 without an array
set -u
parts=$1
shift
[ "$parts" = 0 ] || set -- "$@" --part "$SLURM_ARRAY_TASK_ID/$parts"
srun "$@"
code=$?
# Slurm requeues by itself only what has not ended within its grace time. After scancel nothing comes here: it ends this script, too.
if [ "$code" = 130 ]; then
  echo "stage.sh: stopped with its state written: job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
exit "$code"
