#!/bin/sh
# The fuse sidecar under its old name: wrap_datamon.sh -c DIR -d 'COMMAND'... [-i FILE] [-s]
set -eu
exec "$(dirname -- "$(readlink -f -- "$0")")/datamon" sidecar fuse "$@"
