#!/usr/bin/env bash
# Packs what `benchmarks/gpu_run.py` needs for a CUDA machine without network that has PyTorch, in parts that travel on their own.
#   gpu_pack.sh PACKER OUT [PART_MIB]
# PACKER packs the engine into OUT/part1, OUT/part2, ...: wheels and archives named *.tar.xz. Added here, to the last of them, are the
# pure Python packages that Dooly needs beside the engine's; CatBoost is not one of them, as predicting needs no GPU. A part above
# PART_MIB (60) ends the script with an error. On the machine: gpu_unpack.sh SITE PART..., then PYTHONPATH=SITE.
set -euo pipefail
packer=$1 out=$2 most=${3:-60}
"$packer" "$out"
parts=("$out"/part*)
last=${parts[-1]}
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 -d "$last" \
  'pytest>=9.0' 'pluggy>=1.6' iniconfig 'networkx>=3.5' 'typer>=0.28' nvidia-ml-py
for part in "${parts[@]}"; do
  size=$(du -sm "$part" | cut -f1)
  echo "$part $size MiB"
  if [ "$size" -gt "$most" ]; then
    echo "gpu_pack.sh: $part is $size MiB, above $most; move files of it to a part of its own" >&2
    exit 1
  fi
done
