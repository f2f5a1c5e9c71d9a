#!/usr/bin/env bash
# bash benchmarks/gpu/run.sh [check | graphs | cifar], in the root of a checkout on a machine with a GPU. See README.md.
# Records go to $OUT, else to gpu_results/. They are complete even if the command is interrupted.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=${1:-check}
out=${OUT:-gpu_results}
python=${PYTHON:-python3}
kept=${KEEP:-/tmp/gpu_cifar10}  # CIFAR-10 and its runs: the same command resumes a stopped run
[ -d mobilenet_jax ] || { echo "start this in the root of a checkout"; exit 1; }
mkdir -p "$out"

# Packages that the machine lacks.
if ls .gpu/whl/*.whl >/dev/null 2>&1; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .gpu/whl/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1 WANDB_MODE=disabled TF_CPP_MIN_LOG_LEVEL=2
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch uses the same GPU

# Programs and the results of autotuning, shared by all sections and by later commands on the same machine.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-/tmp/gpu_programs}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
export JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=xla_gpu_per_fusion_autotune_cache_dir

# The parts of CIFAR-10 may come with two commands.
for part in 1 2; do
  [ -d ".gpu_data/$part" ] && mkdir -p "$kept/$part" && cp -u ".gpu_data/$part"/* "$kept/$part/"
done

log=$out/$mode.log
: >"$log"

section() {  # NAME PERCENT_OF_THE_TIME SCRIPT ARGUMENTS...
  local name=$1 seconds=$((total * $2 / 100)) script=$3
  shift 3
  [ "$seconds" -ge 20 ] || seconds=20
  timeout -k 5 $((seconds + 25)) "$python" "$here/$script" "$@" --out "$out/$name.json" --seconds "$seconds" 2>&1 |
    tee -a "$log"
  local code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || echo "$name: exit code $code" | tee -a "$log"
}

case $mode in
check)
  total=${SECONDS_IN_ALL:-430}
  nvidia-smi 2>/dev/null | head -15 | tee -a "$log"
  section ops 15 ops.py
  section rates 50 steps.py rates
  section peers 15 peers.py
  section fuse 10 steps.py fuse
  section layers 10 layers.py
  ;;
graphs)
  total=${SECONDS_IN_ALL:-200}
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE"
  section graphs 100 steps.py graphs
  ;;
cifar)
  total=${SECONDS_IN_ALL:-290}
  shift
  section cifar 100 cifar.py train "$kept" --workdir "$kept/runs" "$@"
  tar -C "$kept" -czf "$out/runs.tar.gz" --exclude checkpoints runs
  ;;
*)
  echo "run.sh check, run.sh graphs, or run.sh cifar"
  exit 1
  ;;
esac
