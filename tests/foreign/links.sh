#!/bin/bash
# Links to a file on depots that are not ours: tests/foreign/links.sh DIRECTORY ibp://HOST:PORT...
# Makes DIRECTORY (which must not exist), leaves it for a look at its log. Needs /dev/fuse and the commands on PATH.
set -e
directory=$1; shift
mkdir "$directory" "$directory/mount"
volume=$directory/volume mount=$directory/mount options=()
for depot in "$@"; do options+=(--depot "$depot"); done

say() { printf '%4d s  %s\n' $SECONDS "$*"; }
fetch() { mkdir -p "$directory/$1"; (cd "$directory/$1" && HOME=$directory/$1 ibpfs get -q - <"../link$2"); }

mkfs.ibpfs -q --no-tls "$volume" "${options[@]}" >"$directory/recovery"
mount.ibpfs "$volume" "$mount"
trap 'umount.ibpfs "$mount" 2>/dev/null || true' EXIT
head -c 20000000 /dev/urandom >"$directory/file"
cp "$directory/file" "$mount/file"
for number in 1 2; do
  ibpfs share "$mount/file" >"$directory/link$number" 2>"$directory/said$number"
  fetch "got$number" $number
  cmp "$directory/file" "$directory/got$number/file"
done
grep -v '^file:\|this machine alone' "$directory/said1"
say "two links, and the same bytes by each"
ids=$(ibpfs share list --volume "$volume" | cut -d' ' -f1)
first=${ids%%$'\n'*}
umount.ibpfs "$mount"
ibpfs warm --all "$volume"
mount.ibpfs "$volume" "$mount"
ibpfs status "$mount" | grep ' links '
ibpfs share revoke "$first" --volume "$volume" || true
ended=0
for number in 1 2; do fetch "again$number" $number || ended=$((ended + 1)); done
[ $ended = 1 ]
say "one link is revoked, the other still gives the same bytes"
ibpfs drop-cache "$mount"
cmp "$directory/file" "$mount/file"
ibpfs share revoke --path "$mount/file" || true
rm "$mount/file"
umount.ibpfs "$mount"
say "all removed"
grep -hE ' (WARNING|ERROR|CRITICAL) |Traceback' "$volume"/log/* | grep -v 'without TLS' || true
