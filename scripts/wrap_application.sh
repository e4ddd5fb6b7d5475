#!/bin/sh
# Runs an application beside sidecars: waits for their data, runs it, has its results uploaded, and ends
# with its exit status. It needs a POSIX shell and cat, date, mkdir, mv, rm and sleep, which any image has.
# The protocol is files in the coordination directory; docs/pods.md describes it.
set -u

usage() {
  cat <<'USAGE'
usage: wrap_application.sh -c DIR [-b fuse|postgres]... [-d "DB..."] [-s] [--on-failure discard|upload]
                           [--timeout SECONDS] [--] APPLICATION [ARGUMENT...]

  -c DIR          coordination directory, shared with the sidecars and empty at first
  -b KIND         a sidecar to wait for: fuse or postgres; repeatable
  -d "DB..."      the databases, for postgres sidecars that coordinate in DIR/DB
  -s              sleep until a signal comes instead of ending, to look around
  --on-failure W  what becomes of the results where the application fails: discard (default) or upload
  --timeout S     how many seconds a sidecar may be silent; 0: for ever (default: 60). One that has not
                  appeared yet has ten times as long.

Exit status: the application's, or 128 and the number of the signal that ended it; 1 where it succeeded
and a sidecar failed, or where it was not run.
USAGE
}

misuse() {
  printf 'wrap_application.sh: %s\n' "$1" >&2
  usage >&2
  exit 1
}

coord='' kinds='' databases='' rest='' on_failure=discard timeout=60
while [ $# -gt 0 ]; do
  case $1 in
    -c | -b | -d | --on-failure | --timeout)
      [ $# -gt 1 ] || misuse "$1 needs a value"
      flag=$1 value=$2
      shift
      ;;
    -[cbd]?*) value=${1#-?} flag=${1%"$value"} ;;
    --on-failure=* | --timeout=*) flag=${1%%=*} value=${1#*=} ;;
    -s) flag=-s ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    -?*) misuse "unknown option $1" ;;
    *) break ;;
  esac
  shift
  case $flag in
    -c) coord=$value ;;
    -b) kinds="$kinds $value" ;;
    -d) databases="$databases $value" ;;
    -s) rest=yes ;;
    --on-failure) on_failure=$value ;;
    --timeout) timeout=$value ;;
  esac
done

[ -n "$coord" ] || misuse 'the coordination directory is missing: -c DIR'
[ $# -gt 0 ] || misuse 'the application is missing'
case $on_failure in discard | upload) ;; *) misuse "--on-failure is discard or upload, not $on_failure" ;; esac
case $timeout in '' | *[!0-9]*) misuse "--timeout is a number of seconds, not $timeout" ;; esac

# Each sidecar is a word KIND:PLACE, PLACE being a directory below the coordination directory.
sidecars=''
for kind in $kinds; do
  case $kind in
    fuse) sidecars="$sidecars fuse:." ;;
    postgres)
      places=${databases:-.}
      for place in $places; do sidecars="$sidecars postgres:$place"; done
      ;;
    *) misuse "there is no sidecar of the kind $kind, only fuse and postgres" ;;
  esac
done

# The other side, which may be another user, must be able to read; the application gets its own mask back.
mask=$(umask)
umask 022

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }
log() { printf '%s wrapper: %s\n' "$(now)" "$1" >&2; }

# split SIDECAR: its kind, its directory, and the names of its steps
split() {
  kind=${1%%:*}
  place=${1#*:}
  dir=$coord
  [ "$place" = . ] || dir=$coord/$place
  case $kind in
    fuse) ready=mountdone upload=initupload done=uploaddone ;;
    postgres) ready=dbstarted upload=initdbupload done=dbuploaddone ;;
  esac
}

# signal FILE TEXT: nobody sees the file without its text
signal() {
  printf '%s\n' "$2" >"$1.draft" && mv -f "$1.draft" "$1" || log "cannot write $1"
}

# Time is counted in turns of a pause, so that it stands still where the pod does.
if sleep 0.01 2>/dev/null; then pause=0.2 per_second=5; else pause=1 per_second=1; fi
turns=0
beat() { printf '%s %s\n' "$$" "$turns" >"$coord/applicationalive"; } 2>/dev/null
turn() {
  sleep "$pause"
  turns=$((turns + 1))
  if [ $((turns % (2 * per_second))) -eq 0 ]; then beat; fi
}

# look NUMBER: fails, with a reason, where the sidecar of that number failed or is silent for too long
look() {
  if [ -e "$dir/${kind}failed" ]; then
    reason=''
    { read -r reason <"$dir/${kind}failed"; } 2>/dev/null
    reason="the $kind sidecar failed: ${reason:-it gave no reason}"
    return 1
  fi
  eval "last=\${last_$1-} silent=\${silent_$1-0}"
  limit=$((timeout * per_second))
  if [ -e "$dir/${kind}alive" ]; then
    this=''
    { read -r this <"$dir/${kind}alive"; } 2>/dev/null
    if [ "$this" != "$last" ]; then silent=0; else silent=$((silent + 1)); fi
    eval "last_$1=\$this silent_$1=\$silent"
    [ "$limit" -eq 0 ] || [ "$silent" -lt "$limit" ] && return 0
    reason="the $kind sidecar has been silent for $timeout s"
    return 1
  fi
  # One that has signalled without a heartbeat is not ours, and has none.
  if [ -e "$dir/$ready" ]; then silent=0; else silent=$((silent + 1)); fi
  eval "silent_$1=\$silent"
  [ "$limit" -eq 0 ] || [ "$silent" -lt $((limit * 10)) ] && return 0
  reason="the $kind sidecar has not appeared in $((timeout * 10)) s"
  return 1
}

look_at_all() {
  number=0
  for sidecar in $sidecars; do
    split "$sidecar"
    number=$((number + 1))
    look "$number" || return 1
  done
}

# await NUMBER FILE: waits for a step of the sidecar that was split last; fails with a reason
await() {
  what="$2 of the $kind sidecar"
  [ "$place" = . ] || what="$2 of the $kind sidecar for $place"
  since=$(now) began=$turns
  log "waiting for $what since $since"
  until [ -e "$dir/$2" ]; do
    look "$1" || return 1
    if [ -n "$ended_by" ]; then
      reason="$ended_by came"
      return 1
    fi
    turn
    if [ $(((turns - began) % (60 * per_second))) -eq 0 ]; then log "still waiting for $what since $since"; fi
  done
  log "$2 came after $(((turns - began) / per_second)) s"
}

# finish STATUS
finish() {
  if [ -n "$rest" ]; then
    log "sleeping instead of ending with status $1, until a signal comes"
    ended_by=''
    until [ -n "$ended_by" ]; do turn; done
  fi
  exit "$1"
}

# give_up REASON STATUS: every sidecar is told that there will be nothing to upload
give_up() {
  signal "$coord/applicationfailed" "$1"
  log "$1; nothing is uploaded"
  finish "$2"
}

status_of() {
  case $1 in HUP) echo 129 ;; INT) echo 130 ;; QUIT) echo 131 ;; *) echo 143 ;; esac
}

app='' ended_by='' signalled='' uploading=''
got() {
  signalled=yes
  if [ -n "$app" ]; then
    signal=$1
    # Without job control a shell starts what is in the background deaf to these two.
    case $1 in INT | QUIT) [ -n "$hears_all" ] || signal=TERM ;; esac
    log "passing SIG$signal on to the application"
    kill -s "$signal" "$app" 2>/dev/null
  elif [ -n "$uploading" ]; then
    log "got SIG$1; the upload goes on, and once more ends this wrapper alone"
    uploading=''
  else
    case $1 in USR?) ;; *) ended_by=SIG$1 status=$(status_of "$1") ;; esac
  fi
}
for name in HUP INT QUIT TERM USR1 USR2; do
  # shellcheck disable=SC2064
  trap "got $name" "$name"
done

mkdir -p "$coord" && [ -w "$coord" ] || {
  log "the coordination directory $coord cannot be written to"
  exit 1
}
rm -f "$coord/applicationfailed" "$coord/.lost"
for sidecar in $sidecars; do
  split "$sidecar"
  [ -e "$dir/$upload" ] || continue
  log "$dir holds $upload of an earlier run: the coordination directory must be empty at first"
  exit 1
done
beat

number=0
for sidecar in $sidecars; do
  split "$sidecar"
  number=$((number + 1))
  if ! await "$number" "$ready"; then
    give_up "$reason; the application was not run" "${status:-1}"
  fi
done

# In the background, so that signals can be passed on, but with the input and the signals of the foreground.
hears_all=''
if env --default-signal=INT,QUIT true 2>/dev/null; then hears_all=yes; fi
start() {
  umask "$mask"
  case $hears_all,$1 in
    yes,*=*) exec "$@" ;;
    yes,*) exec env --default-signal=INT,QUIT "$@" ;;
    *) exec "$@" ;;
  esac
}
exec 3<&0
started=$(now)
log "running the application: $*"
start "$@" <&3 3<&- &
app=$!
exec 3<&-

# Keeps the heart beating and ends the application where a sidecar is lost.
watch() {
  trap - HUP INT QUIT TERM USR1 USR2
  reason='the wrapper was killed'
  while kill -0 "$$" 2>/dev/null; do
    turn
    look_at_all && continue
    : >"$coord/.lost"
    break
  done
  log "$reason; ending the application"
  kill -s TERM "$app" 2>/dev/null
  ending=0
  while [ "$ending" -lt $((30 * per_second)) ] && kill -0 "$app" 2>/dev/null; do
    sleep "$pause"
    ending=$((ending + 1))
  done
  kill -s KILL "$app" 2>/dev/null
}
watch </dev/null &
watcher=$!

while :; do
  signalled=''
  wait "$app"
  ended=$?
  # A wait that a signal cut short says nothing; one that came with the end has the status, once.
  if [ "$ended" -ne 127 ] || [ -z "${status-}" ]; then status=$ended; fi
  [ -n "$signalled" ] || break
done
app=''
{
  kill -s KILL "$watcher"
  wait "$watcher"
  beat
} 2>/dev/null
if [ -e "$coord/.lost" ]; then give_up 'a sidecar was lost, so the application was ended' 1; fi

how="exit status $status"
if [ "$status" -gt 128 ]; then how="ended by SIG$(kill -l "$status" 2>/dev/null || echo "$((status - 128))")"; fi
if [ "$status" -ne 0 ]; then
  log "application exited with non-zero-status: $status, running since $started"
  [ "$on_failure" = upload ] || give_up "$how" "$status"
else
  log "the application is done, running since $started"
fi

uploading=yes
for sidecar in $sidecars; do
  split "$sidecar"
  log "asking the $kind sidecar for the upload: $upload"
  signal "$dir/$upload" "$how"
done
number=0 application=$status status=''
for sidecar in $sidecars; do
  split "$sidecar"
  number=$((number + 1))
  if ! await "$number" "$done"; then
    log "$reason while its $done was waited for"
    [ "$application" -eq 0 ] || finish "$application"
    finish "${status:-1}"
  fi
done
[ -z "$sidecars" ] || log "everything is uploaded"
finish "$application"
