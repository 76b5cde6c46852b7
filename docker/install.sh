#!/usr/bin/env bash
# Install vila-serve with the chat page, traces and quantized models into a Python environment.
# The Dockerfile and the checks run this script: install.sh cpu|cuda REPOSITORY ENVIRONMENT
set -euo pipefail

target=${1:?cpu or cuda} source=${2:?the repository} environment=${3:?the environment}
case $target in cpu | cuda) ;; *) echo "The first argument is '$target'; expected cpu or cuda." >&2 && exit 2 ;; esac
python=$environment/bin/python
[ -x "$python" ] || python3 -m venv "$environment"
install=("$python" -m pip install --no-cache-dir --disable-pip-version-check --no-compile -c "$source/constraints-page.txt")

case $target in
cpu) "${install[@]}" torch --index-url https://download.pytorch.org/whl/cpu ;;
cuda) "${install[@]}" torch triton ;;
esac

quant=$source/packages/vila-quant
[ "$target" = cuda ] || quant+='[cpu]'
"${install[@]}" "$source/packages/vila-core" "$quant" "$source/packages/vila-serve[page,tracing]"

"$python" -m pip check
"$environment/bin/vila-serve" --version
