#!/usr/bin/env bash
# The same command on every worker of a TPU pod; started again as long as it ends by preemption (143) or a crash.
#
#   experiments/launch/tpu_pod.sh NAME ZONE python -m experiments.imagenet --data imagenet2012 \
#       --data-dir /mnt/tfds --workdir gs://BUCKET/run
#
# Each worker needs the project in ~/jaxfast, installed:
#   gcloud compute tpus tpu-vm scp --recurse --worker=all . NAME:jaxfast --zone ZONE
#   gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command "pip install -e 'jaxfast[tpu,pod]'"
# The machine's service account needs to write to the bucket. DRY_RUN=1 prints what would be run.
# TRIES (default 100) bounds how often it is started; PAUSE (default 30) is the seconds between.
set -euo pipefail
if (($# < 3)); then
    echo "usage: $0 NAME ZONE COMMAND..." >&2
    exit 2
fi
name=$1 zone=$2
shift 2
remote="cd ~/jaxfast && exec$(printf ' %q' "$@")"
call=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$remote")
if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${call[@]}"
    echo
    exit 0
fi
for ((try = 1; try <= ${TRIES:-100}; try++)); do
    code=0
    "${call[@]}" || code=$?
    if ((code == 0 || code == 2)); then # done, or a wrong use that trying again does not mend
        exit "$code"
    fi
    echo "ended with $code: starting again ($try of ${TRIES:-100})" >&2
    sleep "${PAUSE:-30}"
done
exit "$code"
