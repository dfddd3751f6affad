#!/bin/bash
# A real volume on depots that are not ours: tests/foreign/volume.sh DIRECTORY ibp://HOST:PORT...
# Makes DIRECTORY (which must not exist), leaves it for a look at its log. Needs /dev/fuse and the commands on PATH.
set -e
directory=$1; shift
source=$(cd "$(dirname "$0")/../.." && pwd)
mkdir "$directory" "$directory/mount"
volume=$directory/volume mount=$directory/mount options=()
for depot in "$@"; do options+=(--depot "$depot"); done

say() { printf '%4d s  %s\n' $SECONDS "$*"; }

mkfs.ibpfs -q "$volume" "${options[@]}" >"$directory/recovery"
mount.ibpfs "$volume" "$mount"
trap 'umount.ibpfs "$mount" 2>/dev/null || true' EXIT
mkdir "$directory/tree"
git -C "$source" archive HEAD | tar x -C "$directory/tree"
head -c 30000000 /dev/urandom >"$directory/tree/random"
cp -a "$directory/tree" "$mount/"
dd if="$directory/tree/random" of="$mount/synced" bs=1M count=8 conv=fsync status=none
say "copied, the last file with fsync"
umount.ibpfs "$mount"
rm -rf "$volume/cache"
mount.ibpfs "$volume" "$mount"
ibpfs drop-cache "$mount"
diff -r "$directory/tree" "$mount/tree"
cmp -n 8388608 "$directory/tree/random" "$mount/synced"
say "the same bytes after a mount with no cache"
umount.ibpfs "$mount"
fsck.ibpfs --data -n "$volume"
mount.ibpfs "$volume" "$mount"
python3 - "$mount/written" <<'END'
import os, random, subprocess, sys
random.seed(1)
model, file = bytearray(), os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for number in range(200):
    at, data = random.randrange(2_000_000), random.randbytes(random.randrange(1, 60_000))
    model.extend(bytes(max(0, at + len(data) - len(model))))
    model[at : at + len(data)] = data
    os.pwrite(file, data, at)
    if number % 50 == 0:
        os.fsync(file)
os.fsync(file)
os.close(file)
subprocess.run(["ibpfs", "drop-cache", os.path.dirname(sys.argv[1])], check=True)
assert open(sys.argv[1], "rb").read() == model
END
say "200 overlapping writes hold"
rm -rf "${mount:?}"/*
ibpfs flush "$mount"
umount.ibpfs "$mount"
say "all removed"
grep -hE ' (WARNING|ERROR|CRITICAL) |Traceback' "$volume"/log/* | grep -v 'without TLS' || true
