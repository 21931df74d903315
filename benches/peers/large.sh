#!/usr/bin/env bash
# Measures large states: a node that holds much more than its memory beside Redis with as much, reads
# of 4 KiB out of large states, streams, replicated writes, small reads beside streams, patches.
# Writes large.md and large.json to benches/results, misses named.
#
#   benches/peers/large.sh [--gib N] [--seconds N] [--quick] [--out DIR]
#                          [--only mixed,ranges,streams,replicated,beside,patches]
#
# Takes about 20 minutes and 30 GB under TMPDIR; --quick two minutes and 6 GB, to see that it runs:
# it writes nothing, nor does --only. Everything listens on the loopback; what is started here is
# ended here, and its data removed.
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v redis-server >/dev/null || {
    echo "redis-server is missing: apt-get install redis-server" >&2
    exit 1
}
target=${CARGO_TARGET_DIR:-$HOME/.cache/statehouse/target}
[ -n "${STATEHOUSE_BIN:-}" ] || make --no-print-directory build
exec python3 benches/peers/large.py --statehouse "${STATEHOUSE_BIN:-$target/release/statehouse}" "$@"
