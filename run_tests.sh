#!/bin/sh
# What `make test` runs, in the order in which a mistake is cheapest to learn of.
set -eu
cd "$(dirname "$0")"
BIN="${BIN:-.venv/bin}"
# The tests start hundreds of processes, and each would compile anew what it imports.
unset PYTHONDONTWRITEBYTECODE
step() { printf '\n== %s\n' "$1"; }

step "format and lint"
"$BIN/ruff" format --check .
"$BIN/ruff" check .
step "import contracts"
"$BIN/lint-imports" --no-cache
step "types"
"$BIN/basedpyright"
[ "${1:-}" = "--checks-only" ] && exit 0

step "core and wire: full branch coverage from their own tests"
"$BIN/python" -m pytest -q -n 2 tests/core tests/wire \
    --cov=mlx_serving.core --cov=mlx_serving.wire --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered
step "everything else"
"$BIN/python" -m pytest -q -n 2 --dist worksteal --ignore=tests/core --ignore=tests/wire
