#!/usr/bin/env bash
# Measures a start: memory of an empty node once it's ready, then the time until it's ready, and
# memory, with much data on the disk, after a polite stop and after kill -9.
#
#   benches/start.sh [GIB]      default 10; needs twice that on the disk under TMPDIR
set -euo pipefail
cd "$(dirname "$0")/.."
gib=${1:-10}
make --no-print-directory build >/dev/null
binary=${CARGO_TARGET_DIR:-$HOME/.cache/statehouse/target}/release/statehouse
dir=$(mktemp -d "${TMPDIR:-/tmp}/statehouse-start-XXXXXX")
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null; rm -rf "$dir"' EXIT

start() { # prints milliseconds until ready and resident MiB then
    : >"$dir/log"
    "$binary" serve --data "$dir/data" --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 \
        --log-format json 2>"$dir/log" &
    pid=$!
    local from
    from=$(date +%s%3N)
    until grep -q '"message":"ready"' "$dir/log"; do
        kill -0 "$pid" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
        sleep 0.01
    done
    local resident
    resident=$(awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$pid/status")
    echo "$1: ready after $(($(date +%s%3N) - from)) ms, $resident MiB resident"
    endpoint=$(grep -o '"grpc":"[^"]*"' "$dir/log" | cut -d'"' -f4)
}

start "empty"
states=$((gib * 4096))
"$binary" bench --endpoint "$endpoint" --mix put --state-bytes 256KiB --keys "$states" --load \
    --in-flight 4 --connections 1 --duration 1s --warmup 0s >/dev/null
echo "loaded $states states of 256 KiB: $(du -sh "$dir/data" | cut -f1) on disk"
kill "$pid"
wait "$pid" || true
start "after a stop"
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
start "after kill -9"
kill "$pid"
wait "$pid" || true
pid=
