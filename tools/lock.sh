#!/usr/bin/env bash
# Pins the environments of the tests and of the checks, for every Python from 3.10 on, without
# index addresses: requirements/{test,lint,pgspot}.lock. `lock.sh` keeps what still fits;
# `lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

bash tools/setup.sh venv .venv-lock
.venv-lock/bin/python -m pip install -qq 'uv>=0.5'

compile() {
  .venv-lock/bin/uv --no-config pip compile --quiet --universal --python-version 3.10 \
    --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' "$@"
}

compile "$@" --extra test --output-file requirements/test.lock pyproject.toml
compile "$@" --extra lint --constraint requirements/test.lock --output-file requirements/lint.lock pyproject.toml
compile "$@" --output-file requirements/pgspot.lock requirements/pgspot.in
