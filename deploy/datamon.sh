#!/bin/sh
# Runs Datamon, and installs it first: put this file on the PATH as `datamon` and use it as such.
#
# Releases come from DATAMON_RELEASES, an https address or a folder with what scripts/release makes;
# the first line of ~/.datamon/releases/location serves where that is not set. They are kept in
# ~/.datamon/releases, and a newer one is looked for at most once a day. DATAMON_VERSION asks for
# one version. Nothing is run whose SHA-256 is not the release's.
set -eu

fail() {
  for line in "$@"; do printf 'datamon: %s\n' "$line" >&2; done
  exit 1
}
say() { printf 'datamon: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

[ -n "${HOME:-}" ] || fail "HOME is not set; releases are kept in \$HOME/.datamon/releases."
cache=$HOME/.datamon/releases

location() {
  if [ -n "${DATAMON_RELEASES:-}" ]; then printf '%s\n' "$DATAMON_RELEASES"; return; fi
  if [ -r "$cache/location" ] && has head; then head -n 1 "$cache/location"; fi
}

# What this script itself needs, all that is missing named at once.
need_helpers() {
  missing=
  for helper in tar gzip sed date mkdir mktemp mv rm cp head uname; do has "$helper" || missing="$missing $helper"; done
  has sha256sum || has shasum || has openssl || missing="$missing sha256sum(or shasum or openssl)"
  case $from in
    http://* | https://*) has curl || has wget || missing="$missing curl(or wget)" ;;
  esac
  [ -z "$missing" ] || fail "these programs are needed and missing:$missing" "Install them with this machine's package manager."
}

# fetch NAME FILE: a file of the release location.
fetch() {
  case $from in
    https://* | http://localhost* | http://127.0.0.1*)
      if has curl; then curl -fsSL --retry 3 --connect-timeout 20 -o "$2" "$from/$1"
      else wget -q --tries=3 --timeout=20 -O "$2" "$from/$1"; fi ;;
    http://*) fail "releases are fetched by https only, not from $from" ;;
    *) cp -- "${from#file://}/$1" "$2" 2>/dev/null ;;
  esac
}

sum_of() {
  if has sha256sum; then sha256sum -- "$1"; elif has shasum; then shasum -a 256 -- "$1"; else openssl dgst -sha256 -r -- "$1"; fi |
    sed 's/[ *].*//'
}

checked_version() {
  case $1 in
    '' | *[!0-9A-Za-z.+-]* | .* | -*) fail "$2 does not name a version: '$1'" ;;
  esac
  printf '%s\n' "$1"
}

# The version to run: the one asked for, else the newest, which is looked up once a day.
choose() {
  if [ -n "${DATAMON_VERSION:-}" ]; then checked_version "$DATAMON_VERSION" DATAMON_VERSION; return; fi
  known=
  if [ -r "$cache/newest" ]; then known=$(sed -n 1p "$cache/newest"); fi
  today=$(date +%Y-%m-%d)
  if [ -n "$known" ] && [ -x "$cache/$known/scripts/datamon" ] && [ "$(sed -n 2p "$cache/newest")" = "$today" ]; then
    printf '%s\n' "$known"
    return
  fi
  if fetch latest "$work/latest"; then
    newest=$(checked_version "$(head -n 1 "$work/latest")" "$from/latest")
    printf '%s\n%s\n' "$newest" "$today" >"$work/newest"
    mv -f "$work/newest" "$cache/newest"
    printf '%s\n' "$newest"
  elif [ -n "$known" ] && [ -x "$cache/$known/scripts/datamon" ]; then
    say "$from does not answer; using version $known, which is here"
    printf '%s\n' "$known"
  else
    fail "the newest version cannot be found out: $from/latest cannot be read" \
      "Check DATAMON_RELEASES and the network."
  fi
}

platform() {
  case $(uname -s)/$(uname -m) in
    Linux/x86_64) echo linux-x64 ;;
    *) echo other ;;
  esac
}

install() {
  if [ "$(platform)" = other ]; then archive=datamon-$1.tgz; else archive=datamon-$1-$(platform).tar.gz; fi
  if [ "$archive" = "datamon-$1.tgz" ] && ! has npm; then
    fail "npm is needed on this kind of machine, and missing" "Any recent Node.js brings it."
  fi
  say "installing version $1 from $from …"
  fetch "$1/SHA256SUMS" "$work/SHA256SUMS" || fail "version $1 is not in $from"
  fetch "$1/$archive" "$work/$archive" || fail "$from/$1/$archive cannot be read"
  expected=$(sed -n "s/^\([0-9a-f]\{64\}\)  *\**$archive\$/\1/p" "$work/SHA256SUMS")
  actual=$(sum_of "$work/$archive")
  [ -n "$expected" ] || fail "$from/$1/SHA256SUMS does not have $archive"
  [ "$expected" = "$actual" ] ||
    fail "$from/$1/$archive is damaged and was not installed" "SHA-256 is $actual and should be $expected."
  mkdir "$work/unpacked"
  tar -xzf "$work/$archive" -C "$work/unpacked"
  if [ "$archive" = "datamon-$1.tgz" ]; then
    (cd "$work/unpacked/package" && npm install --omit=dev --no-audit --no-fund --loglevel=error >&2)
  fi
  # Another start of this script may have been faster.
  [ -e "$cache/$1" ] || mv "$work/unpacked/"* "$cache/$1" || fail "version $1 cannot be moved to $cache/$1"
  [ -x "$cache/$1/scripts/datamon" ] || fail "$cache/$1 is not a release of Datamon" "Remove it and try again."
}

from=$(location)
version=${DATAMON_VERSION:-}
if [ -z "$from" ]; then
  [ -n "$version" ] || [ ! -r "$cache/newest" ] || version=$(sed -n 1p "$cache/newest")
  [ -n "$version" ] && [ -x "$cache/$version/scripts/datamon" ] ||
    fail "no release location is known" "Set DATAMON_RELEASES to the address or folder of the releases."
  exec "$cache/$version/scripts/datamon" "$@"
fi
need_helpers
mkdir -p "$cache" || fail "$cache cannot be made"
work=$(mktemp -d "$cache/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
version=$(choose)
[ -x "$cache/$version/scripts/datamon" ] || install "$version"
rm -rf "$work"
trap - EXIT HUP INT TERM
exec "$cache/$version/scripts/datamon" "$@"
