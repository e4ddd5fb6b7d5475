#!/bin/sh
# The PostgreSQL sidecar under its old name: it takes its parameters from dm_pg_opts and dm_pg_db_<id>, or from SIDECAR_CONFIG.
set -eu

self=$0
case $self in
  */*) ;;
  *) if [ -e "./$self" ]; then self=./$self; else self=$(command -v -- "$self"); fi ;;
esac
while [ -L "$self" ]; do
  target=$(readlink "$self")
  case $target in
    /*) self=$target ;;
    *) self=${self%/*}/$target ;;
  esac
done
exec "${self%/*}/datamon" sidecar postgres "$@"
