#!/usr/bin/env bash
# Measures three nodes beside a three-member etcd and, if REDIS_SERVER is 7.2 or newer, a Redis with
# two replicas: writes, reads, what shards cost, what a move costs, how long a dead leader is missed.
# Writes the tables to benches/results.
#
#   benches/peers/cluster.sh [--seconds N] [--kills N] [--stops N] [--out DIR]
#                            [--only rates|shards|moves|failover]
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v etcd >/dev/null || {
    echo "etcd is missing: apt-get install etcd-server" >&2
    exit 1
}
target=${CARGO_TARGET_DIR:-$HOME/.cache/statehouse/target}
make --no-print-directory build
exec python3 benches/peers/cluster.py --statehouse "${STATEHOUSE_BIN:-$target/release/statehouse}" "$@"
