#!/usr/bin/env bash
# Measures a node and its peers in one run on this machine: Redis in memory, Redis with every write
# synced, a bare tonic echo, a Python scoring service over Redis. Prints a table with ratios and
# writes it, with all figures as JSON, to a folder.
#
#   benches/peers/redis.sh [--out DIR] [--seconds N] [--quick]
#
# Everything listens on the loopback; what is started here is ended here.
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v redis-server >/dev/null || {
    echo "redis-server is missing: apt-get install redis-server" >&2
    exit 1
}
target=${CARGO_TARGET_DIR:-$HOME/.cache/statehouse/target}
make --no-print-directory build

# PEERS_VENV is taken as it is; ours is made anew when it does not hold what is asked for, such as
# after an install that broke off.
venv=${PEERS_VENV:-$HOME/.cache/statehouse/peers-venv}
wanted=benches/peers/requirements.txt
if [ -z "${PEERS_VENV:-}" ] && ! cmp --quiet "$wanted" "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv" || {
        echo "python3 can't make an environment: apt-get install python3-venv" >&2
        exit 1
    }
    "$venv/bin/pip" install --quiet -r "$wanted"
    cp "$wanted" "$venv/requirements.txt"
fi
exec "$venv/bin/python" benches/peers/compare.py --statehouse "$target/release/statehouse" "$@"
