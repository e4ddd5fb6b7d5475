#!/bin/sh
# The PostgreSQL sidecar under its old name: it takes its parameters from dm_pg_opts and dm_pg_db_<id>, or from SIDECAR_CONFIG.
set -eu
exec "$(dirname -- "$(readlink -f -- "$0")")/datamon" sidecar postgres "$@"
