#!/usr/bin/env bash
# Style, types and layers. `tests/checks.sh --fix` mends what can be mended.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ "${1:-}" == "--fix" ]]; then
  ruff check --fix .
  ruff format .
else
  ruff check .
  ruff format --check .
fi
mypy
lint-imports
