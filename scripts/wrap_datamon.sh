#!/bin/sh
# The fuse sidecar under its old name: wrap_datamon.sh -c DIR -d 'COMMAND'... [-i FILE] [-s]
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
exec "${self%/*}/datamon" sidecar fuse "$@"
