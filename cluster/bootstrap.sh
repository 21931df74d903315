#!/usr/bin/env bash
# A cluster of nodes on this machine, as background processes: forms it, starts what is down,
# kills and adds nodes, takes it away again. Run it again as often as you like.
#
# It ends only processes that it started: those whose pid file, program and --data agree.
set -euo pipefail

readonly EXIT_FAILED=1 EXIT_USAGE=2 EXIT_PORT_TAKEN=3 EXIT_NO_BINARY=4 EXIT_MISFIT=5 EXIT_NOT_WHOLE=6
# Seconds that a node may take to listen, and to stop; and the cluster to become whole.
readonly LISTEN_MAX_S=30 STOP_MAX_S=30 WHOLE_MAX=120s

usage() {
    cat <<'USAGE'
bootstrap.sh [--nodes 3] [--shards 16] [--replicas 3] [--dir DIR] [--base-port 7070]
             forms a cluster on this machine, or starts those of its nodes that are down
bootstrap.sh status        which nodes run, and how the cluster does
bootstrap.sh start N       starts node N
bootstrap.sh kill N        kills node N with -9
bootstrap.sh add-node      adds one more node and waits until it has its replicas
bootstrap.sh stop          stops all nodes, one after the other
bootstrap.sh destroy       stops all nodes and removes their data; asks first, unless --yes
bootstrap.sh --print-systemd | --print-env
                           a unit, or the settings it reads, for a node on a host of its own

Node i listens at base-port + 10*(i-1): +0 gRPC, +1 HTTP, +2 for the other nodes.
DIR is ~/.local/state/statehouse/cluster unless said otherwise; each node has its data and log there.
STATEHOUSE_BIN names the program; else it's built with cargo, in CARGO_TARGET_DIR if that is set.
Other STATEHOUSE_* settings are handed on to the nodes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a port is taken, 4 no program, 5 what is in DIR does
not fit (another cluster, other settings, a pid that is not the node's), 6 not whole in time.
USAGE
}

say() { printf '%s\n' "$*"; }

die() { # exit code, message
    local code=$1
    shift
    printf 'bootstrap.sh: %s\n' "$*" >&2
    exit "$code"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${XDG_STATE_HOME:-${HOME:-/var/lib}/.local/state}/statehouse/cluster
action=form number='' nodes='' shards='' replicas='' base_port='' yes=''

number_of() { # name, value, least
    if ! [[ $2 =~ ^[0-9]{1,5}$ ]] || ((10#$2 < $3)); then
        die $EXIT_USAGE "expected $1 of at least $3, got '$2'"
    fi
    printf '%d' "$((10#$2))"
}

parse() {
    local words=0
    while (($# > 0)); do
        case $1 in
            --nodes | --shards | --replicas | --dir | --base-port)
                (($# > 1)) || die $EXIT_USAGE "expected a value after $1"
                case $1 in
                    --nodes) nodes=$(number_of --nodes "$2" 1) ;;
                    --shards) shards=$(number_of --shards "$2" 1) ;;
                    --replicas) replicas=$(number_of --replicas "$2" 1) ;;
                    --base-port) base_port=$(number_of --base-port "$2" 1024) ;;
                    --dir) dir=$2 ;;
                esac
                shift
                ;;
            --yes) yes=1 ;;
            --print-systemd) action=print-systemd ;;
            --print-env) action=print-env ;;
            -h | --help) action=help ;;
            status | add-node | stop | destroy | start | kill)
                ((words++ == 0)) || die $EXIT_USAGE "expected one command, got '$1' too"
                action=$1
                if [[ $1 == start || $1 == kill ]]; then
                    (($# > 1)) || die $EXIT_USAGE "expected the number of a node after $1"
                    number=$(number_of "a node's number" "$2" 1)
                    shift
                fi
                ;;
            *) die $EXIT_USAGE "expected a command or flag that --help names, got '$1'" ;;
        esac
        shift
    done
}

# --- The program ---

bin=''

find_binary() {
    if [[ -n ${STATEHOUSE_BIN:-} ]]; then
        bin=$(command -v -- "$STATEHOUSE_BIN") ||
            die $EXIT_NO_BINARY "STATEHOUSE_BIN is $STATEHOUSE_BIN, which can't be run"
        # Ours alone: a node would call it no key of its configuration.
        export -n STATEHOUSE_BIN
    else
        # Where the Makefile builds, too.
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/statehouse/target}
        bin=$CARGO_TARGET_DIR/release/statehouse
        if command -v cargo >/dev/null; then
            (cd "$root" && cargo build --release --locked --quiet --bin statehouse) ||
                die $EXIT_NO_BINARY "the program can't be built: see above"
        fi
        [[ -x $bin ]] || die $EXIT_NO_BINARY "there is no $bin, and no cargo to build it with"
    fi
    bin=$(readlink -f -- "$bin")
}

# --- What is in DIR: `settings`, and of each node `node-N/{data,log,pid,member}` ---

is_formed() { [[ -f $dir/settings ]]; }

load_settings() {
    is_formed || die $EXIT_MISFIT "there is no cluster in $dir: form one with --nodes, or name another --dir"
    local name value
    while IFS='=' read -r name value; do
        [[ $value =~ ^[0-9]+$ ]] || die $EXIT_MISFIT "$dir/settings: expected a number for $name, got '$value'"
        case $name in
            nodes) had_nodes=$value ;;
            shards) had_shards=$value ;;
            replicas) had_replicas=$value ;;
            base_port) had_base_port=$value ;;
            *) die $EXIT_MISFIT "$dir/settings: unknown name '$name'" ;;
        esac
    done <"$dir/settings"
    fit --shards "$shards" "$had_shards"
    fit --replicas "$replicas" "$had_replicas"
    fit --base-port "$base_port" "$had_base_port"
    if [[ -n $nodes && $nodes != "$had_nodes" ]]; then
        die $EXIT_MISFIT "the cluster in $dir has $had_nodes nodes: add one with add-node"
    fi
    nodes=$had_nodes shards=$had_shards replicas=$had_replicas base_port=$had_base_port
}

fit() { # flag, wanted, had
    [[ -z $2 || $2 == "$3" ]] || die $EXIT_MISFIT "the cluster in $dir was formed with $1 $3, not $2"
}

save_settings() {
    printf 'nodes=%s\nshards=%s\nreplicas=%s\nbase_port=%s\n' \
        "$nodes" "$shards" "$replicas" "$base_port" >"$dir/settings.new"
    mv -- "$dir/settings.new" "$dir/settings"
}

grpc_port() { printf '%d' $((base_port + 10 * ($1 - 1))); }

endpoints() { # of nodes 1..=$1
    local i list=''
    for ((i = 1; i <= $1; i++)); do
        list+=${list:+,}127.0.0.1:$(grpc_port "$i")
    done
    printf '%s' "$list"
}

# --- Processes ---

# Whether a process is node N: its program and its --data say so.
is_node() { # pid, N
    local words word previous=''
    [[ -r /proc/$1/cmdline ]] || return 1
    mapfile -d '' -t words 2>/dev/null <"/proc/$1/cmdline" || return 1
    [[ ${#words[@]} -gt 1 && $(basename -- "${words[0]}") == "$(basename -- "$bin")" ]] || return 1
    # A program that was built anew meanwhile is "(deleted)" and still ours.
    [[ $(readlink -- "/proc/$1/exe" 2>/dev/null) == "$(readlink -f -- "${words[0]}")"* ]] || return 1
    for word in "${words[@]}"; do
        if [[ $previous == --data && $word == "$dir/node-$2/data" ]]; then return 0; fi
        previous=$word
    done
    return 1
}

# The pid of node N, if it runs. Says so and ends if the pid file names something else.
pid=''
running() { # N
    local file=$dir/node-$1/pid
    pid=''
    [[ -s $file ]] || return 1
    pid=$(<"$file")
    [[ $pid =~ ^[0-9]+$ ]] || die $EXIT_MISFIT "$file does not hold a pid but '$pid'"
    if [[ ! -d /proc/$pid ]] || is_zombie "$pid"; then return 1; fi
    is_node "$pid" "$1" || die $EXIT_MISFIT "$file names process $pid, which is not node $1 but" \
        "'$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-80)': remove the file if node $1 is down"
}

is_zombie() { [[ $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c 1) == Z ]]; }

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

check_ports() { # N
    local port first
    first=$(grpc_port "$1")
    ((first + 2 <= 65535)) || die $EXIT_USAGE "node $1 would listen at $first: choose a smaller --base-port"
    for port in "$first" $((first + 1)) $((first + 2)); do
        if is_taken "$port"; then
            die $EXIT_PORT_TAKEN "port $port, which node $1 needs, is taken: choose another --base-port" \
                "or end what listens there$(owner_of "$port")"
        fi
    done
}

owner_of() { # port
    command -v ss >/dev/null || return 0
    local found
    found=$(ss -Hltnp "sport = :$1" 2>/dev/null | sed -n 's/.*users:((\([^)]*\)).*/\1/p' | head -n 1)
    [[ -z $found ]] || printf ' (%s)' "$found"
}

# Prepares the data directory of node N: the first founds the cluster, the others join it.
prepare() { # N
    local home=$dir/node-$1 told cluster
    mkdir -p -- "$home"
    if [[ ! -s $home/member ]]; then
        if (($1 == 1)); then
            told=$("$bin" init --data "$home/data" --shards "$shards" --replicas "$replicas" \
                --if-needed --json 2>&1) || die $EXIT_FAILED "node 1 can't found a cluster: $told"
        else
            local i seeds=()
            for ((i = 1; i < $1; i++)); do seeds+=(--seed "127.0.0.1:$(grpc_port "$i")"); done
            told=$("$bin" join --data "$home/data" "${seeds[@]}" --if-needed --json 2>&1) ||
                die $EXIT_FAILED "node $1 can't join: $told"
        fi
        sed -n 's/.*"cluster_id": *"\([0-9a-f]*\)".*/\1/p' <<<"$told" >"$home/member"
    fi
    cluster=$(<"$home/member")
    [[ -n $cluster ]] || die $EXIT_FAILED "node $1 did not say which cluster it is of: $told"
    [[ $cluster == "$(<"$dir/node-1/member")" ]] || die $EXIT_MISFIT \
        "$home is of cluster $cluster, and node 1 of $(<"$dir/node-1/member"): use a fresh --dir"
}

launch() { # N
    local home=$dir/node-$1 first
    first=$(grpc_port "$1")
    # Of its own session: what ends this shell does not end it.
    setsid "$bin" serve --data "$home/data" --listen "127.0.0.1:$first" \
        --http-listen "127.0.0.1:$((first + 1))" --peer-listen "127.0.0.1:$((first + 2))" \
        >>"$home/log" 2>&1 </dev/null 9>&- &
    local started=$! i
    # For a moment it is a copy of this shell, and not yet the node.
    for ((i = 0; i < 50; i++)); do
        if is_node "$started" "$1" || [[ ! -d /proc/$started ]] || is_zombie "$started"; then break; fi
        sleep 0.1
    done
    printf '%d\n' "$started" >"$home/pid"
}

await_listening() { # N
    local i
    for ((i = 0; i < LISTEN_MAX_S * 10; i++)); do
        if is_taken "$(grpc_port "$1")"; then return; fi
        running "$1" || die $EXIT_FAILED "node $1 ended at once; the end of $dir/node-$1/log:" \
            $'\n'"$(tail -n 5 -- "$dir/node-$1/log")"
        sleep 0.1
    done
    die $EXIT_FAILED "node $1 does not listen after $LISTEN_MAX_S s: see $dir/node-$1/log"
}

# Starts node N if it's down; answers whether it was.
bring_up() { # N
    if running "$1"; then return 1; fi
    check_ports "$1"
    prepare "$1"
    launch "$1"
}

await_whole() {
    say 'waiting until every shard has a leader and all its replicas ...'
    local code=0
    admin status --wait=$WHOLE_MAX || code=$?
    ((code == 0)) || die $EXIT_NOT_WHOLE "the cluster is not whole after $WHOLE_MAX:" \
        "see '$0 --dir $dir status' and the logs in $dir/node-*/log"
}

admin() { STATEHOUSE_ENDPOINT=$(endpoints "$nodes") "$bin" admin "$@"; }

next_steps() {
    cat <<NEXT

export STATEHOUSE_ENDPOINT=$(endpoints "$nodes")
$bin admin nodes            # who is in it
$bin admin shards --watch   # where the shards are
$0 --dir $dir kill 2        # see it go on without one
$0 --dir $dir stop          # and 'destroy' to remove it
NEXT
}

# --- What can be asked for ---

form() {
    if is_formed; then
        load_settings
    else
        [[ -z $(ls -A --ignore lock -- "$dir") ]] || die $EXIT_MISFIT "$dir is not empty, and no cluster is in it"
        : "${nodes:=3}" "${shards:=16}" "${replicas:=3}" "${base_port:=7070}"
        local i
        for ((i = 1; i <= nodes; i++)); do check_ports "$i"; done
        # From here on a run that is cut short is gone on with by the next one.
        save_settings
    fi
    local i started=()
    # The nodes that are members already first, all of them: one alone may wait for the others.
    for ((i = 1; i <= nodes; i++)); do
        if [[ -s $dir/node-$i/member ]] && bring_up "$i"; then started+=("$i"); fi
    done
    for i in "${started[@]}"; do await_listening "$i"; done
    for ((i = 1; i <= nodes; i++)); do
        if bring_up "$i"; then
            started+=("$i")
            await_listening "$i"
        fi
    done
    if ((${#started[@]} > 0)); then say "started nodes ${started[*]}"; else say 'all nodes run already'; fi
    await_whole
    next_steps
}

status() {
    load_settings
    local i down=0
    for ((i = 1; i <= nodes; i++)); do
        if running "$i"; then
            say "node $i  runs as process $pid at 127.0.0.1:$(grpc_port "$i"), log $dir/node-$i/log"
        else
            down=$((down + 1))
            say "node $i  is down: $0 --dir $dir start $i"
        fi
    done
    if ((down == nodes)); then exit $EXIT_FAILED; fi
    say
    admin status
    say
    admin nodes
}

start_one() {
    load_settings
    ((number <= nodes)) || die $EXIT_USAGE "there are nodes 1 to $nodes: another one is added with add-node"
    if bring_up "$number"; then
        await_listening "$number"
        say "started node $number as process $(<"$dir/node-$number/pid")"
    else
        say "node $number runs already, as process $pid"
    fi
}

kill_one() {
    load_settings
    ((number <= nodes)) || die $EXIT_USAGE "there are nodes 1 to $nodes, got $number"
    running "$number" || die $EXIT_FAILED "node $number does not run"
    kill -9 "$pid"
    await_end "$number" "$pid"
    say "killed node $number, process $pid"
}

await_end() { # N, pid
    local i
    for ((i = 0; i < STOP_MAX_S * 10; i++)); do
        if [[ ! -d /proc/$2 ]] || is_zombie "$2"; then
            rm -f -- "$dir/node-$1/pid"
            return
        fi
        sleep 0.1
    done
    die $EXIT_FAILED "node $1, process $2, has not ended after $STOP_MAX_S s: see $dir/node-$1/log"
}

add_node() {
    load_settings
    local last=$nodes
    nodes=$((nodes + 1))
    # An attempt that was cut short is gone on with: its directory is there, its number is free.
    check_ports "$nodes"
    STATEHOUSE_ENDPOINT=$(endpoints "$last") "$bin" admin status >/dev/null ||
        die $EXIT_FAILED 'no node answers that a new one could join: start the others first'
    bring_up "$nodes" || true
    save_settings
    await_listening "$nodes"
    say "started node $nodes"
    await_whole
    next_steps
}

stop_all() {
    load_settings
    local i stopped=()
    # What does not fit is said before anything is ended.
    for ((i = 1; i <= nodes; i++)); do running "$i" || true; done
    for ((i = 1; i <= nodes; i++)); do
        if running "$i"; then
            kill -TERM "$pid"
            await_end "$i" "$pid"
            stopped+=("$i")
        fi
    done
    if ((${#stopped[@]} > 0)); then say "stopped nodes ${stopped[*]}"; else say 'no node runs'; fi
}

destroy() {
    load_settings
    if [[ -z $yes ]]; then
        [[ -t 0 ]] || die $EXIT_USAGE "destroy removes all data in $dir: say --yes"
        read -r -p "remove all data in $dir? [y/N] " yes
        [[ $yes == [yY]* ]] || die $EXIT_FAILED 'nothing was removed'
    fi
    stop_all
    rm -rf -- "$dir"/node-* "$dir/settings" "$dir/lock"
    rmdir -- "$dir" 2>/dev/null || true
    say "removed the cluster in $dir"
}

print_env() {
    cat <<'ENV'
# /etc/statehouse/statehouse.env: what the unit of --print-systemd reads. Once on each host:
#   on the first:   sudo -u statehouse statehouse init --data /var/lib/statehouse --shards 16 --replicas 3
#   on the others:  sudo -u statehouse statehouse join --data /var/lib/statehouse --seed FIRST-HOST:7070
STATEHOUSE_DATA=/var/lib/statehouse
STATEHOUSE_LISTEN=0.0.0.0:7070
STATEHOUSE_HTTP_LISTEN=0.0.0.0:7071
# For the other nodes alone: keep clients out with the network.
STATEHOUSE_PEER_LISTEN=0.0.0.0:7072
# How clients and the other nodes reach this host.
STATEHOUSE_ADVERTISE=THIS-HOST:7070
STATEHOUSE_PEER_ADVERTISE=THIS-HOST:7072
STATEHOUSE_LOG_FORMAT=json
ENV
}

print_systemd() {
    cat <<'UNIT'
# /etc/systemd/system/statehouse.service
[Unit]
Description=Statehouse, a store of model states
Wants=network-online.target
After=network-online.target
# A node whose disk is full or broken ends; it is tried again for as long as that takes.
StartLimitIntervalSec=0

[Service]
User=statehouse
EnvironmentFile=/etc/statehouse/statehouse.env
ExecStart=/usr/local/bin/statehouse serve
Restart=always
RestartSec=5
# Hands over what it leads, lets calls under way end, flushes.
KillSignal=SIGTERM
TimeoutStopSec=60
LimitNOFILE=1048576
StateDirectory=statehouse
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/var/lib/statehouse
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
UNIT
}

main() {
    parse "$@"
    case $action in
        help) usage && exit ;;
        print-env) print_env && exit ;;
        print-systemd) print_systemd && exit ;;
    esac
    find_binary
    [[ $action == form ]] && mkdir -p -- "$dir"
    [[ -d $dir ]] || die $EXIT_MISFIT "there is no cluster in $dir: form one with --nodes, or name another --dir"
    dir=$(cd "$dir" && pwd)
    if [[ $action != status ]]; then
        # One run at a time; the nodes do not inherit the lock.
        exec 9>"$dir/lock"
        flock -n 9 || die $EXIT_FAILED "another run is at work in $dir"
    fi
    case $action in
        form) form ;;
        status) status ;;
        start) start_one ;;
        kill) kill_one ;;
        add-node) add_node ;;
        stop) stop_all ;;
        destroy) destroy ;;
    esac
}

main "$@"
